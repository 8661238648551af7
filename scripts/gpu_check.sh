#!/usr/bin/env bash
# Checks a build on a machine with a GPU: every op against the CPU, the speed of products, ops, decoding and
# training beside the machine's own ceilings (and beside PyTorch where its python3 has it), the sanitizers
# of the CUDA toolkit, in one call of at most 9 minutes. That machine needs CUDA (the driver, cuBLAS, cuDNN
# where it was built with) and nothing else: where the build was made, --pack puts the programs and the
# other libraries that they load into a folder to be carried over, and that folder into FOLDER.tar.xz.
#   scripts/gpu_check.sh --pack FOLDER [--build build/release]     where it was built
#   FOLDER/gpu_check.sh [--seconds 540] [--quick] [--out DIR]      where the GPU is
# --quick leaves the sanitizers out. What is printed is also kept in DIR ($OUT, else a new folder of
# /tmp), with the numbers of the benchmarks as JSON. Exit status: 0 all passed, 1 something failed or was
# not run in the time, 2 wrong arguments, 3 there is no GPU.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
programs=(chaski tests/kernels_test tests/parity/parity_test)

fail() {
  printf 'gpu_check: error: %s\nhint: %s\n' "$1" "$2" >&2
  exit "${3:-2}"
}

build=$here/../build/release
pack='' seconds=540 quick=0 out=${OUT:-}
while [[ $# -gt 0 ]]; do
  case $1 in
    --pack | --build | --seconds | --out)
      [[ -n ${2:-} ]] || fail "$1 needs a value" "--help shows which"
      printf -v "${1#--}" %s "$2" && shift
      ;;
    --quick) quick=1 ;;
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" && exit 0 ;;
    *) fail "unknown argument $1" "--help shows them" ;;
  esac
  shift
done
[[ $seconds =~ ^[1-9][0-9]*$ ]] || fail "--seconds is $seconds but must be a number above 0" "the default is 540"

# CUDA's libraries and the C library are the other machine's.
is_carried() { [[ ! $1 =~ /(libcuda|libcudart|libcublas[A-Za-z]*|libcudnn[a-z_]*|libnvrtc[a-z-]*|libnvidia-[a-z]*|libc|libm|libdl|libpthread|librt|ld-linux-x86-64)\.so ]]; }

if [[ -n $pack ]]; then
  "$build/chaski" --version 2>/dev/null | grep -q '^CUDA: cuBLAS' ||
    fail "$build/chaski is missing or built without CUDA" "cmake --preset release -DCHASKI_CUDA=ON, then build"
  mkdir -p "$pack/bin" "$pack/lib" || exit 1
  for program in "${programs[@]}"; do
    [[ -x $build/$program ]] || fail "$build/$program is missing" "cmake --build $build"
    strip -o "$pack/bin/${program##*/}" "$build/$program"
    ldd "$build/$program" | awk '$3 ~ /^\// {print $3}'
  done | sort -u | while read -r library; do
    if is_carried "$library"; then cp -L "$library" "$pack/lib/"; fi
  done
  cp -r "$here/../tests/golden" "$pack/"
  cp "${BASH_SOURCE[0]}" "$here/bench/pytorch_baseline.py" "$pack/"
  strip --strip-unneeded "$pack"/lib/*.so* 2>/dev/null || true
  tar -C "$(dirname "$pack")" -c "$(basename "$pack")" | xz -T0 -6 >"$pack.tar.xz" || exit 1
  printf 'packed %s: %s; %s.tar.xz: %s\n' "$pack" "$(du -sh "$pack" | cut -f1)" "$pack" "$(du -h "$pack.tar.xz" | cut -f1)"
  exit 0
fi

if [[ -d $here/bin && -d $here/lib ]]; then
  export LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} CHASKI_GOLDEN_DIR=$here/golden
  at() { printf '%s' "$here/bin/${1##*/}"; }
else
  at() { printf '%s' "$build/$1"; }
fi
[[ -x $(at chaski) ]] || fail "there is no $(at chaski)" "build it, or run the gpu_check.sh of a folder made by --pack"
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader; then
  fail "nvidia-smi finds no GPU" "this is to be run on a machine that has one" 3
fi
"$(at chaski)" --version

# Open MPI starts without mpirun, but not without these.
export HOME=${HOME:-/tmp} OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
[[ -n $out ]] || out=$(mktemp -d)
mkdir -p "$out" || fail "$out cannot be made" "--out DIR names another folder"
log=$out/gpu_check.log step_log=$(mktemp) start=$SECONDS failed=0 rows=()
: >"$log"
: >"$out/benchmarks.jsonl"

# step NAME LIMIT COMMAND...: one line of the table at the end, with the last lines that match $found.
found='^\[  (PASSED|FAILED)  \]'
step() {
  local name=$1 limit=$2 left=$((seconds - (SECONDS - start))) began=$SECONDS status result
  shift 2
  printf '\n=== %s\n' "$name" | tee -a "$log"
  if [[ $left -lt 5 ]]; then
    rows+=("$(printf '%-44s not run: the time is up' "$name")")
    failed=1
    return
  fi
  timeout "$((limit < left ? limit : left))" "$@" >"$step_log" 2>&1
  status=$?
  case $status in
    0) result=passed ;;
    124) result="no time" failed=1 ;;
    *) result="FAILED ($status)" failed=1 ;;
  esac
  cat "$step_log" >>"$log"
  if [[ $status -ne 0 || $found != '^\['* ]]; then tail -n 60 "$step_log"; fi
  rows+=("$(printf '%-44s %-12s %4d s  %s' "$name" "$result" $((SECONDS - began)) \
    "$(grep -E "$found" "$step_log" | tail -n 2 | tr -s ' ' | paste -sd ';')")")
}
# bench NAME LIMIT ARGUMENTS...: as a table here, as one JSON object a line in benchmarks.jsonl.
bench() {
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" "$(at chaski)" bench "$@" --device cuda
}
as_json() { timeout 60 "$(at chaski)" bench "$@" --device cuda --json 2>>"$log" | tr -d '\n' >>"$out/benchmarks.jsonl" && echo >>"$out/benchmarks.jsonl"; }

step "ops, f32" 60 "$(at tests/kernels_test)" --gtest_filter='*/cuda_f32'
step "ops, bf16" 60 "$(at tests/kernels_test)" --gtest_filter='*/cuda_bf16'
CHASKI_PARITY_DEVICE=cuda step "whole model against PyTorch's numbers, f32" 60 "$(at tests/parity/parity_test)" \
  --gtest_filter='-*FiniteDifference*'

# 16384 tokens of 2048 bf16 numbers are more than any GPU's cache holds.
shapes=(--preset llama-1b --micro-batch 8 --sequence-length 2048)
found='of a whole step'
bench "products of llama-1b, bf16" 40 gemm --preset llama-1b --seconds 0.2
found='^ceilings'
bench "ops of llama-1b, bf16" 40 ops "${shapes[@]}" --seconds 0.2
bench "ops of llama-1b, fp32" 40 ops "${shapes[@]}" --precision fp32 --seconds 0.1
found='^(tokens/s|effective)'
bench "training llama-1b, bf16" 45 train "${shapes[@]}" --steps 10
bench "training llama-1b, bf16, without graphs" 45 train "${shapes[@]}" --steps 10 --no-graphs --profile
bench "training llama-350m, bf16" 40 train --preset llama-350m --micro-batch 16 --sequence-length 2048 --steps 10
found='^1 '
bench "decoding with llama-350m, fp32" 30 decode --preset llama-350m --seconds 0.3
baseline=$here/pytorch_baseline.py
[[ -f $baseline ]] || baseline=$here/bench/pytorch_baseline.py
if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
  found='tokens_per_second'
  for preset in llama-1b llama-350m; do
    step "PyTorch, compiled, $preset, bf16" 90 python3 "$baseline" --device cuda --preset "$preset" --batch 8 --sequence 2048 \
      --steps 10 --warmup 4 --compile
  done
else
  rows+=("$(printf '%-44s not run: python3 has no torch that sees the GPU' PyTorch)")
fi
as_json train "${shapes[@]}" --steps 5
as_json ops "${shapes[@]}" --seconds 0.05

found='ERROR SUMMARY|RACECHECK SUMMARY|^\[  (PASSED|FAILED)  \]'
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -n 1)
if [[ $quick -eq 0 && -n $sanitizer ]]; then
  for tool in memcheck racecheck initcheck; do
    step "ops under $tool" 90 "$sanitizer" --tool "$tool" --error-exitcode 9 "$(at tests/kernels_test)" \
      --gtest_filter='*/cuda_f32:*/cuda_bf16'
  done
elif [[ $quick -eq 0 ]]; then
  rows+=("$(printf '%-44s not run: there is no compute-sanitizer' sanitizers)")
fi
rm -f "$step_log"
{
  printf '\n'
  printf '%s\n' "${rows[@]}"
  if [[ $failed -ne 0 ]]; then printf 'something FAILED\n'; else printf 'all passed\n'; fi
} | tee -a "$log"
printf 'kept in %s\n' "$out"
exit "$failed"
