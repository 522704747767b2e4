#!/usr/bin/env bash
# Everything of benchmarks/results/h100*.json, in parts of less than 100 seconds each (LIMIT=100).
#
#   benchmarks/h100.sh list           the names of the parts
#   benchmarks/h100.sh PART… DIR      measures them on this machine's GPU, into DIR/*.json
#   benchmarks/h100.sh join DIR       joins what is in DIR: benchmarks/results/h100*.json and pictures
#
# PYTHON=… is a Python that finds the package with its CUDA backend (python3 unless told). Where that
# is no git checkout, BLOCK_SPARSE_COMMIT=… names the commit for the JSON. OPTIONS=… goes to every
# part after its own options, which it overrides: OPTIONS="--seconds .04 --peers none" for less than
# half of the time. A part that fails does not keep the others from being measured.
set -euo pipefail

python=${PYTHON:-python3}
parts=(wide-coarse wide-fine square small decode uneven dtypes llama roberta roberta-whole host)
# Joined into h100.json; the others into files of their own. The first has the host's time.
main=(host wide-coarse wide-fine square small decode llama roberta roberta-whole)
alone=(uneven float16 tf32 float32)

# bench NAME OPTIONS…: one run, into $out/NAME.json
bench() {
  local extra
  eval "extra=(${OPTIONS:-})"  # which may quote the name of a peer
  timeout -k 5 "${LIMIT:-100}" "$python" -m pytorch_block_sparse bench --device cuda \
    --json "$out/$1.json" "${@:2}" "${extra[@]}"
}

measure() {
  local products="forward,input gradient,weight gradient" patterns=even,power-law,one-full-row
  local failed=0
  case $1 in
    wide-coarse) bench "$1" --shapes 4096x14336 --blocks 128,64 ;;
    wide-fine) bench "$1" --shapes 4096x14336 --blocks 32,16 ;;
    square) bench "$1" --shapes 4096x4096 --peers "plain Triton,STK" ;;
    small) bench "$1" --shapes 768x3072 --peers "plain Triton,STK" ;;
    decode)
      bench "$1" --shapes 4096x14336,8192x28672 --tokens 1,4,16,64 \
        --blocks 128,32,16 --densities .5,.1 --peers "plain Triton"
      ;;
    uneven)
      bench "$1" --shapes 4096x14336 --densities .5,.1 --peers none --products "$products" \
        --pattern "$patterns" || failed=1
      bench uneven-decode --shapes 4096x14336 --tokens 64 --blocks 128,32 --densities .5,.1 \
        --peers none --products "forward,input gradient" --pattern "$patterns" || failed=1
      return "$failed"
      ;;
    dtypes)
      for dtype in float16 tf32 float32; do
        bench "$dtype" --shapes 4096x14336 --blocks 128,32 --densities .5,.1 --dtype "$dtype" \
          --peers none --products "$products" || failed=1
      done
      return "$failed"
      ;;
    llama) bench "$1" --model llama-mlp --blocks 64 ;;
    roberta) bench "$1" --model roberta-base --blocks 64 --compile layers ;;
    roberta-whole) bench "$1" --model roberta-base --blocks 64 --densities .5 ;;
    host) bench "$1" --host --seconds 2 ;;
    *)
      echo "$1 is no part, expected some of: ${parts[*]}" >&2
      return 2
      ;;
  esac
}

join() {
  local results read=("$python" -m pytorch_block_sparse bench --read) files=()
  results=$(dirname "$0")/results
  for name in "${main[@]}"; do
    if [ -e "$1/$name.json" ]; then files+=("$1/$name.json"); fi
  done
  "${read[@]}" "${files[@]}" --json "$results/h100.json" --plots "$results/h100"
  for name in "${alone[@]}"; do
    files=()
    for part in "$name" "$name-decode"; do
      if [ -e "$1/$part.json" ]; then files+=("$1/$part.json"); fi
    done
    if [ ${#files[@]} != 0 ]; then
      "${read[@]}" "${files[@]}" --json "$results/h100-$name.json"
    fi
  done
}

case ${1:-} in
  list) printf '%s\n' "${parts[@]}" ;;
  join) join "$2" ;;
  "") sed -n '2,12s/^# \?//p' "$0" ;;
  *)
    out=${*: -1}
    mkdir -p "$out"
    status=0
    for part in "${@:1:$#-1}"; do measure "$part" || status=1; done
    exit "$status"
    ;;
esac
