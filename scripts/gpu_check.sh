#!/usr/bin/env bash
# Checks a build on a machine with a GPU: every op against the CPU, the sanitizers of the CUDA toolkit,
# the speed of training, in one call of at most 9 minutes. That machine needs CUDA (the driver, cuBLAS,
# cuDNN where it was built with) and nothing else: where the build was made, --pack puts the programs and
# the other libraries that they load into a folder to be carried over.
#   scripts/gpu_check.sh --pack FOLDER [--build build/release]     where it was built
#   FOLDER/gpu_check.sh [--seconds 540] [--quick]                  where the GPU is
# --quick leaves the sanitizers out. Exit status: 0 all passed, 1 something failed, 2 wrong arguments,
# 3 there is no GPU.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
programs=(chaski tests/kernels_test tests/parity/parity_test)

fail() {
  printf 'gpu_check: error: %s\nhint: %s\n' "$1" "$2" >&2
  exit "${3:-2}"
}

build=$here/../build/release
pack='' seconds=540 quick=0
while [[ $# -gt 0 ]]; do
  case $1 in
    --pack) pack=${2:-} && shift ;;
    --build) build=${2:-} && shift ;;
    --seconds) seconds=${2:-} && shift ;;
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
  cp "${BASH_SOURCE[0]}" "$pack/gpu_check.sh"
  printf 'packed %s: %s\n' "$pack" "$(du -sh "$pack" | cut -f1)"
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
logs=$(mktemp -d)
start=$SECONDS failed=0
# check NAME COMMAND...: one line of the table; what it printed is shown where it failed.
check() {
  local name=$1 left=$((seconds - (SECONDS - start))) began=$SECONDS result=passed status
  shift
  if [[ $left -lt 10 ]]; then
    printf '%-44s %s\n' "$name" "not run: the time is up"
    failed=1
    return
  fi
  timeout "$left" "$@" >"$logs/log" 2>&1
  status=$?
  if [[ $status -ne 0 ]]; then result="FAILED ($status)" failed=1; fi
  printf '%-44s %-12s %4d s  %s\n' "$name" "$result" $((SECONDS - began)) "$(grep -E '^\[  (PASSED|FAILED)  \]' "$logs/log" | head -n 1)"
  if [[ $status -ne 0 ]]; then tail -n 40 "$logs/log"; fi
}
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -n 1)

check "ops, f32" "$(at tests/kernels_test)" --gtest_filter='*/cuda_f32'
check "ops, bf16" "$(at tests/kernels_test)" --gtest_filter='*/cuda_bf16'
CHASKI_PARITY_DEVICE=cuda check "whole model against PyTorch's numbers, f32" "$(at tests/parity/parity_test)" \
  --gtest_filter='-*FiniteDifference*'
for precision in fp32 bf16; do
  for preset in llama-60m llama-130m; do
    printf '\n'
    timeout 60 "$(at chaski)" bench train --device cuda --precision "$precision" --preset "$preset" --micro-batch 32 \
      --sequence-length 1024 --steps 10 || failed=1
  done
done
printf '\n'
if [[ $quick -eq 0 ]]; then
  if [[ -n $sanitizer ]]; then
    for tool in memcheck racecheck initcheck; do
      check "ops under $tool" "$sanitizer" --tool "$tool" --error-exitcode 9 "$(at tests/kernels_test)" \
        --gtest_filter='*/cuda_f32:*/cuda_bf16'
    done
  else
    printf '%-44s %s\n' "sanitizers" "not run: there is no compute-sanitizer"
  fi
fi
rm -rf "$logs"
if [[ $failed -ne 0 ]]; then printf 'something FAILED\n' && exit 1; fi
printf 'all passed\n'
