# SPDX-License-Identifier: Apache-2.0
"""Timings of block-sparse layers beside what else one could use.

`python -m pytorch_block_sparse bench`; docs/benchmarks.md says how to read what it prints.
"""
