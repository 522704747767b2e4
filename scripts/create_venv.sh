#!/usr/bin/env bash
# Creates the virtual environment named by the first argument, unless it is there and works, and
# installs everything that pyproject.toml lists for development, the package itself excepted.
set -euo pipefail

venv=$1
python=${PYTHON:-python3}

# It may be there and broken, when its Python was removed, or too old.
if ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
  echo "Creating $venv with $("$python" --version)"
  "$python" -m venv --clear "$venv"
fi

# uv resolves and downloads in parallel, and shares what it has unpacked between environments.
if [[ ! -x $venv/bin/uv ]]; then
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv
fi
"$venv/bin/uv" pip install --python "$venv/bin/python" --requirements pyproject.toml --extra dev
