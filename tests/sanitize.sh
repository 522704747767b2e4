#!/usr/bin/env bash
# Runs the Python tests that hand wrong tensors, random damaged indices and damaged files to the
# library, with the library built under AddressSanitizer and UndefinedBehaviorSanitizer: a wrong
# read ends the process with a report, also where it would have gone unnoticed.
#
#   VENV=…   environment with torch (.venv)
# Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
library=$PWD/build/sanitize/src/torch/libblock_sparse_torch.so

# Python is not built with the sanitizers, so their run time has to be loaded before it; and the C++
# library with it, since AddressSanitizer looks up there what throws.
preload=$(ldd "$library" | awk '$1 ~ /^lib(asan|ubsan|stdc\+\+)\.so/ {print $3}' | sort)
if [[ $preload != *libasan* ]]; then
  echo "$library does not use the shared AddressSanitizer, so these tests would prove nothing." >&2
  exit 1
fi

# Leaks are those of Python and torch, which free little at exit. Only what Python itself prints is
# captured, so that a report is seen when a worker ends with it.
export BLOCK_SPARSE_LIBRARY=$library PYTHONPATH=python OMP_NUM_THREADS=1
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
LD_PRELOAD=${preload//$'\n'/ } "$venv/bin/python" -m pytest -n auto --maxprocesses 4 --capture=sys \
  tests/python/test_*corrupt.py tests/python/test_checkpoint*.py tests/python/test_bad_*.py \
  tests/python/test_ops.py tests/python/test_matrix*.py "$@"
