#!/usr/bin/env bash
# Sees to it that Python, the compiler and the libraries that set-up and tests need from the system
# are there. Each is looked for by using it, so a machine that has them from elsewhere is left alone.
# What is missing is installed with apt-get where this user may, else named in one line to paste.
#
#   PYTHON=…   the Python to make the environment with (python3)
# The argument is the environment: where it works already, its Python is the one that counts.
set -euo pipefail

python=${PYTHON:-python3}
new_enough='import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 10))'
if "$1/bin/python" -c "$new_enough" >/dev/null 2>&1; then python=$1/bin/python; fi
missing=()

has_header() {
  echo "#include <$1>" | g++ -std=c++20 -fsyntax-only -x c++ - 2>/dev/null
}

if ! version=$("$python" -c "$new_enough" 2>/dev/null); then
  echo "Python 3.10 or newer is needed, but $python is ${version:-not found}." \
    "Say which one to use: make PYTHON=/path/to/python3.12 …" >&2
  exit 1
fi

command -v g++ >/dev/null || missing+=(g++)
# Without a compiler nothing is known about the headers; Debian's packages are asked for then too.
has_header gtest/gtest.h || missing+=(libgtest-dev)
has_header benchmark/benchmark.h || missing+=(libbenchmark-dev)
# What Debian splits off its own Pythons; a Python from elsewhere is whole, or apt-get cannot help.
# The library is built without Python's headers: torch.compile needs them, for the C++ it writes.
"$python" -c '
import os, sys, sysconfig
sys.exit(sys.base_prefix == "/usr" and
         not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
  missing+=("python$version-dev")
"$python" -c '
import importlib.util, sys
sys.exit(sys.base_prefix == "/usr" and not importlib.util.find_spec("ensurepip"))' ||
  missing+=("python$version-venv")

((${#missing[@]})) || exit 0

if ! command -v apt-get >/dev/null; then
  echo "Please install what Debian calls: ${missing[*]}; then run the same command again." >&2
  exit 1
fi
if [[ $(id -u) == 0 ]]; then
  as_root=(env)
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  as_root=(sudo -n env)
else
  echo "Please run this, then the same command again:" >&2
  echo "  sudo apt-get update && sudo apt-get install -y ${missing[*]}" >&2
  exit 1
fi
echo "Installing system packages: ${missing[*]}"
apt() {
  "${as_root[@]}" DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" </dev/null
}
apt update
apt install -y --no-install-recommends "${missing[@]}" >/dev/null
