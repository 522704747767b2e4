#!/usr/bin/env bash
# Creates the virtual environment named by the first argument, unless it is there and works, and
# installs everything that pyproject.toml lists for development, the package itself excepted.
set -euo pipefail

venv=$1
python=${PYTHON:-python3}

version_of() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 10))'
}

if ! version_of "$venv/bin/python" >/dev/null 2>&1; then
  if ! found=$(version_of "$python" 2>/dev/null); then
    echo "Python 3.10 or newer is needed, but $python is ${found:-not found}." \
      "Say which one to use: make PYTHON=/path/to/python3.12 …" >&2
    exit 1
  fi
  echo "Creating $venv with Python $found"
  "$python" -m venv --clear "$venv"
fi

# uv resolves and downloads in parallel, and shares what it has unpacked between environments.
if [[ ! -x $venv/bin/uv ]]; then
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv
fi
"$venv/bin/uv" pip install --python "$venv/bin/python" --requirements pyproject.toml --extra dev
