#!/usr/bin/env bash
# Builds the source archive and from it, in an isolated environment as `pip install .` does, the
# wheel; checks its tags and what its library links to; installs it elsewhere and multiplies.
set -euo pipefail

python=$PWD/$1/bin/python
uv=$PWD/$1/bin/uv
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$uv" build --quiet --python "$python" --out-dir "$work/dist" .
wheels=("$work"/dist/*.whl)
name=$(basename "${wheels[0]}")
if ((${#wheels[@]} != 1)) || [[ $name != pytorch_block_sparse-*-py3-none-linux_x86_64.whl ]]; then
  echo "Expected one py3-none-linux_x86_64 wheel, got: ${wheels[*]##*/}" >&2
  exit 1
fi

"$uv" venv --quiet --python "$python" "$work/venv"
"$uv" pip install --quiet --python "$work/venv/bin/python" "${wheels[0]}"
libraries=("$work"/venv/lib/python*/site-packages/pytorch_block_sparse/lib/libblock_sparse_torch*.so)
for library in "${libraries[@]}"; do
  if readelf --dynamic "$library" | grep NEEDED | grep -iE 'cu(da|dart|blas|dnn)|nvrtc|python'; then
    echo "${library##*/} of $name must need neither CUDA's libraries nor a certain Python." >&2
    exit 1
  fi
done

cd "$work"
# torch warns that numpy, which nothing here needs, is not there.
venv/bin/python -W "ignore:Failed to initialize NumPy" - <<'PY'
import torch
from pytorch_block_sparse import BlockSparseLinear

layer = BlockSparseLinear(64, 96, density=0.5, block_shape=(32, 32))
x = torch.randn(5, 64)
expected = torch.nn.functional.linear(x, layer.weight.to_dense(), layer.bias)
torch.testing.assert_close(layer(x), expected)
PY
echo "$name: tags, linkage and use of ${libraries[*]##*/} are right"
