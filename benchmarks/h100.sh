#!/usr/bin/env bash
# Everything of benchmarks/results/h100*.json, in parts of less than 100 seconds each.
#
#   benchmarks/h100.sh list           the names of the parts
#   benchmarks/h100.sh PART… DIR      measures them on this machine's GPU, into DIR/PART.json
#   benchmarks/h100.sh join DIR       joins what is in DIR: benchmarks/results/h100*.json and pictures
#
# PYTHON=… is a Python that finds the package with its CUDA backend (python3 unless told). Where that
# is no git checkout, BLOCK_SPARSE_COMMIT=… names the commit for the JSON.
set -euo pipefail

python=${PYTHON:-python3}
parts=(wide-128 wide-64 wide-32 wide-16 square small decode decode-large uneven float16 tf32 float32
  llama roberta-0.5 roberta-0.25 roberta-0.1)

measure() {
  local part=$1 out=$2/$1.json
  local bench=(timeout -k 5 100 "$python" -m pytorch_block_sparse bench --device cuda --json "$out")
  case $part in
    wide-*) "${bench[@]}" --shapes 4096x14336 --blocks "${part#wide-}" ;;
    square) "${bench[@]}" --shapes 4096x4096 --peers "plain Triton,STK" ;;
    small) "${bench[@]}" --shapes 768x3072 --peers "plain Triton,STK" ;;
    decode) "${bench[@]}" --shapes 4096x14336 --tokens 1,4,16,64 --peers "plain Triton" ;;
    decode-large)
      "${bench[@]}" --shapes 8192x28672 --tokens 1,4,16,64 --blocks 128,64,32 --densities .5,.1 \
        --peers none ;;
    uneven)
      "${bench[@]}" --shapes 4096x14336 --blocks 128,64,32,16 --densities .5,.1 --peers none \
        --products "forward,input gradient,weight gradient" --pattern even,power-law,one-full-row ;;
    float16 | tf32 | float32)
      "${bench[@]}" --shapes 4096x14336 --blocks 128,32 --densities .5,.1 --dtype "$part" \
        --peers none --products "forward,input gradient,weight gradient" ;;
    llama) "${bench[@]}" --model llama-mlp --blocks 64 ;;
    roberta-*) "${bench[@]}" --model roberta-base --blocks 64 --densities "${part#roberta-}" ;;
    *)
      echo "$part is no part, expected some of: ${parts[*]}" >&2
      return 2
      ;;
  esac
}

join() {
  local results
  results=$(dirname "$0")/results
  local read=("$python" -m pytorch_block_sparse bench --read)
  local main=()
  for part in wide-128 wide-64 wide-32 wide-16 square small decode decode-large llama roberta-0.5 \
    roberta-0.25 roberta-0.1; do
    if [ -e "$1/$part.json" ]; then main+=("$1/$part.json"); fi
  done
  "${read[@]}" "${main[@]}" --json "$results/h100.json" --plots "$results/h100"
  for part in uneven float16 tf32 float32; do
    if [ -e "$1/$part.json" ]; then
      "${read[@]}" "$1/$part.json" --json "$results/h100-$part.json"
    fi
  done
}

case ${1:-} in
  list) printf '%s\n' "${parts[@]}" ;;
  join) join "$2" ;;
  "") sed -n '2,9s/^# \?//p' "$0" ;;
  *)
    out=${*: -1}
    mkdir -p "$out"
    for part in "${@:1:$#-1}"; do measure "$part" "$out"; done
    ;;
esac
