#!/usr/bin/env bash
# Runs the Python tests of operators and modules under the oldest torch supported, with the very
# shared library that was built against the newest: one binary serves every torch from there on.
#
#   VENV=…     environment with the library built (.venv)
#   OLDEST=…   environment with the oldest torch, made when missing (.venv-oldest)
# Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
oldest=${OLDEST:-.venv-oldest}
torch_version=2.11

if [ -x "$venv/bin/uv" ]; then uv="$venv/bin/uv"; else uv=uv; fi

if ! "$oldest/bin/python" -c "import torch, pytest, hypothesis, expecttest" 2>/dev/null; then
  "$uv" venv --quiet --allow-existing --python "$venv/bin/python" "$oldest"
  "$uv" pip install --quiet --python "$oldest/bin/python" \
    "torch==$torch_version.*" numpy safetensors pytest pytest-xdist hypothesis expecttest
fi

if [ -z "${BLOCK_SPARSE_LIBRARY:-}" ]; then
  BLOCK_SPARSE_LIBRARY=$("$venv/bin/python" -c \
    "from pytorch_block_sparse import _library as l; print(l.find_library(l.LIBRARY))")
fi
export BLOCK_SPARSE_LIBRARY PYTHONPATH=python
"$oldest/bin/python" - <<'PYTHON'
import os
import torch
import pytorch_block_sparse.ops  # loads the library

print(f"{os.environ['BLOCK_SPARSE_LIBRARY']} under torch {torch.__version__}")
PYTHON

# Those that need transformers and other optional packages are left to the main environment.
OMP_NUM_THREADS=1 "$oldest/bin/python" -m pytest -n auto --maxprocesses 4 \
  tests/python/test_ops.py tests/python/test_ops_corrupt.py tests/python/test_autograd.py \
  tests/python/test_compile.py tests/python/test_export.py tests/python/test_library.py \
  $(ls tests/python/test_matrix*.py tests/python/test_linear*.py tests/python/test_pattern.py \
    tests/python/test_checkpoint*.py tests/python/test_sparse_optimizer*.py \
    tests/python/test_density.py 2>/dev/null) "$@"
