#!/usr/bin/env bash
# Runs what needs a GPU: the CUDA tests in C++, then the Python tests on cuda. Nothing is compiled,
# so that a build from a machine without a GPU can be carried to one that has it, where
#
#   PYTHON=…                  Python with torch, pytest and hypothesis (.venv/bin/python)
#   CUDA_TESTS=…              block_sparse_cuda_tests (that of build/python)
#   BLOCK_SPARSE_LIBRARY=…    libblock_sparse_torch.so beside libblock_sparse_torch_cuda.so; without
#                             it, those that are installed in that Python
# name what was carried. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
if [ -n "${BLOCK_SPARSE_LIBRARY:-}" ]; then export PYTHONPATH=$PWD/python${PYTHONPATH:+:$PYTHONPATH}; fi

"${CUDA_TESTS:-build/python/tests/cuda/block_sparse_cuda_tests}" --gtest_brief=1

workers=()
if "$python" -c "import xdist" 2>/dev/null; then workers=(-n auto --maxprocesses 4); fi
OMP_NUM_THREADS=1 "$python" -m pytest --device=cuda "${workers[@]}" "$@"
