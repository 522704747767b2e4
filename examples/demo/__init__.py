# SPDX-License-Identifier: Apache-2.0
"""A RoBERTa goes block-sparse and trains beside its dense twin: `make demo`."""
