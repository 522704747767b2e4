#!/usr/bin/env bash
# Sees to it that the compiler and the libraries the build needs from the system are there. Each
# is looked for by using it, so a machine that has them from elsewhere is left alone. What is
# missing is installed with apt-get where this user may, else named in one line to paste.
set -euo pipefail

python=${PYTHON:-python3}
missing=()

has_header() {
  echo "#include <$1>" | g++ -std=c++20 -fsyntax-only -x c++ - 2>/dev/null
}

command -v g++ >/dev/null || missing+=(g++)
command -v ninja >/dev/null || missing+=(ninja-build)
# Without a compiler nothing is known about the headers; Debian's packages are asked for then too.
has_header gtest/gtest.h || missing+=(libgtest-dev)
has_header benchmark/benchmark.h || missing+=(libbenchmark-dev)
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
# torch.compile builds small C++ modules, which include Python.h.
"$python" -c 'import os, sysconfig, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
  missing+=(python3-dev)

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
