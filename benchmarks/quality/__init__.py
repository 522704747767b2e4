# SPDX-License-Identifier: Apache-2.0
"""Does a learned pattern learn better? A small language model, trained by every method."""
