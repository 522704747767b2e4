# SPDX-License-Identifier: Apache-2.0
"""Timings of block-sparse layers beside what else one could use: `make bench`."""
