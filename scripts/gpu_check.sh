#!/usr/bin/env bash
# Checks a build on a machine with a GPU: every op against the CPU, trainings beside the CPU's and resumed
# there, the speed of products, ops, decoding and training beside the machine's own ceilings (and beside PyTorch where its python3 has it), the sanitizers
# of the CUDA toolkit, in one call of at most 9 minutes. That machine needs CUDA (the driver, cuBLAS, cuDNN
# where it was built with) and nothing else: where the build was made, --pack puts the programs and the
# other libraries that they load into a folder to be carried over, and that folder into FOLDER.tar.xz.
#   scripts/gpu_check.sh --pack FOLDER [--build build/release]     where it was built
#   FOLDER/gpu_check.sh [--seconds 540] [--quick] [--out DIR]      where the GPU is
# --quick leaves the sanitizers out. What is printed is also kept in DIR ($OUT, else a new folder of
# /tmp), with the numbers of the benchmarks as JSON. Exit status: 0 all passed, 1 something failed or was
# not run in the time, or packing failed, 2 wrong arguments, 3 there is no GPU that the programs can use.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
programs=(chaski tests/kernels_test tests/parity/parity_test)

fail() {
  printf 'gpu_check: error: %s\nhint: %s\n' "$1" "$2" >&2
  exit "${3:-2}"
}

packed=0
if [[ -d $here/bin && -d $here/lib ]]; then packed=1; fi
build='' pack='' seconds=540 quick=0 out=${OUT:-} given=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --pack | --build | --seconds | --out)
      case $1 in --pack) what=FOLDER ;; --build) what="build folder" ;; --seconds) what=number ;; --out) what=DIR ;; esac
      # Another option is no value: it was forgotten.
      [[ -n ${2:-} && ${2:-} != -* ]] || fail "$1 needs a $what" "--help shows how it is used"
      printf -v "${1#--}" %s "$2"
      given+=("$1")
      shift
      ;;
    --quick) quick=1 given+=("$1") ;;
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" && exit 0 ;;
    *) fail "unknown argument $1" "--help shows them" ;;
  esac
  shift
done
[[ $seconds =~ ^[1-9][0-9]{0,5}$ ]] || fail "--seconds is $seconds but must be a whole number above 0" "the default is 540"
for option in "${given[@]}"; do
  case $packed$option in
    1--pack | 1--build) fail "$option is for where the build was made, and $here is a folder made by --pack" "call the script of the repository" ;;
    0--seconds | 0--quick | 0--out) [[ -z $pack ]] || fail "$option has no meaning with --pack" "it is for the machine that has the GPU" ;;
  esac
done
[[ -z $build || -d $build ]] || fail "--build names $build, which is no folder" "the default is build/release of the repository"
build=${build:-$here/../build/release}

# CUDA's libraries and the C library are the other machine's.
is_carried() { [[ ! $1 =~ /(libcuda|libcudart|libcublas[A-Za-z]*|libcudnn[a-z_]*|libnvrtc[a-z-]*|libnvidia-[a-z]*|libc|libm|libdl|libpthread|librt|libutil|libresolv|libanl|libnss_[a-z]*|ld-linux-x86-64)\.so ]]; }

if [[ -n $pack ]]; then
  while [[ $pack == */ && $pack != / ]]; do pack=${pack%/}; done
  for program in "${programs[@]}"; do
    [[ -x $build/$program ]] || fail "$build/$program is missing" "cmake --build $build"
  done
  "$build/chaski" --version 2>/dev/null | grep -q '^CUDA: cuBLAS' ||
    fail "$build/chaski is built without CUDA, or does not start" "cmake --preset release -DCHASKI_CUDA=ON, then build"
  # What an older one left would be carried along.
  [[ ! -e $pack ]] || [[ -d $pack && -z $(ls -A "$pack") ]] || fail "$pack is there already" "remove it, or name another folder"
  mkdir -p "$pack/bin" "$pack/lib" || fail "$pack cannot be made" "name another folder" 1
  declare -A libraries=()
  for program in "${programs[@]}"; do
    strip -o "$pack/bin/${program##*/}" "$build/$program" || fail "$build/$program cannot be copied" "is there room for it?" 1
    needed=$(ldd "$build/$program") || fail "what $build/$program loads cannot be told" "ldd $build/$program" 1
    while read -r name _ library _; do
      if [[ $library == not ]]; then
        # CUDA's come from where the programs will run.
        if is_carried "/$name"; then fail "$build/$program loads $name, which is not found" "build it anew" 1; fi
      elif [[ $library == /* ]] && is_carried "$library"; then
        libraries[$library]=1
      fi
    done <<<"$needed"
  done
  if ! { cp -Lf "${!libraries[@]}" "$pack/lib/" && chmod u+w "$pack"/lib/* && cp -r "$here/../tests/golden" "$pack/" &&
    cp "${BASH_SOURCE[0]}" "$here/bench/pytorch_baseline.py" "$here/bench/loss_curves.py" "$pack/" &&
    cat "$here"/../README.md "$here"/../docs/*.md >"$pack/text.txt"; }; then
    fail "$pack cannot be filled" "is there room for it?" 1
  fi
  strip --strip-unneeded "$pack"/lib/*.so* 2>/dev/null || true
  tar -C "$(dirname "$pack")" -c "$(basename "$pack")" | xz -T0 -6 >"$pack.tar.xz" || fail "$pack.tar.xz cannot be made" "is there room for it?" 1
  printf 'packed %s: %s; %s.tar.xz: %s\n' "$pack" "$(du -sh "$pack" | cut -f1)" "$pack" "$(du -h "$pack.tar.xz" | cut -f1)"
  exit 0
fi

if [[ $packed -eq 1 ]]; then
  export LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} CHASKI_GOLDEN_DIR=$here/golden
  at() { printf '%s' "$here/bin/${1##*/}"; }
  text=("$here/text.txt") scripts=$here
else
  text=("$here"/../README.md "$here"/../docs/*.md) scripts=$here/bench
  at() { printf '%s' "$build/$1"; }
fi
for program in "${programs[@]}"; do
  [[ -x $(at "$program") ]] || fail "there is no $(at "$program")" "build it, or run the gpu_check.sh of a folder made by --pack"
done
command -v nvidia-smi >/dev/null || fail "there is no GPU here: no nvidia-smi is found" "this is to be run on a machine that has one" 3
# Where there is none, nvidia-smi may say so and exit with 0.
if ! gpus=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1) || [[ $gpus != *,*,* ]]; then
  fail "there is no GPU here: nvidia-smi says: ${gpus//$'\n'/ }" "this is to be run on a machine that has one" 3
fi
printf '%s\n' "$gpus"
"$(at chaski)" --version || fail "$(at chaski) does not start" "its libraries must be as new as those it was built with: ldd $(at chaski)" 1
# A driver that is too old for the programs shows here, in one line.
problem=$(timeout -k 5 60 "$(at chaski)" bench gemm --device cuda --preset llama-9m --tokens 64 --seconds 0 2>&1 >/dev/null) ||
  fail "the programs cannot use the GPU: $(sed -n '1s/^chaski: error: //p' <<<"$problem")" "$(sed -n 's/^hint: //p' <<<"$problem" | head -n 1)" 3

# Open MPI starts without mpirun, but not without these.
export HOME=${HOME:-/tmp} OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
[[ -n $out ]] || out=$(mktemp -d)
mkdir -p "$out" || fail "$out cannot be made" "--out DIR names another folder"
log=$out/gpu_check.log step_log=$(mktemp) runs=$(mktemp -d) start=$SECONDS failed=0 left_out=0 rows=()
trap 'rm -rf "$step_log" "$runs"' EXIT
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
  timeout -k 5 "$((limit < left ? limit : left))" "$@" >"$step_log" 2>&1
  status=$?
  # Tests that find no GPU to run on pass, all none of them.
  if [[ $status -eq 0 ]] && grep -q '^\[  PASSED  \] 0 tests' "$step_log"; then status="none ran"; fi
  case $status in
    0) result=passed ;;
    124) result="no time" failed=1 ;;
    *) result="FAILED ($status)" failed=1 ;;
  esac
  cat "$step_log" >>"$log"
  if [[ $status != 0 || $found != '^\['* ]]; then tail -n 60 "$step_log"; fi
  rows+=("$(printf '%-44s %-12s %4d s  %s' "$name" "$result" $((SECONDS - began)) \
    "$(grep -E "$found" "$step_log" | tail -n 2 | tr -s ' ' | paste -sd ';')")")
}
# not_run REASON NAME: a line of the table, too.
not_run() {
  rows+=("$(printf '%-44s not run: %s' "$2" "$1")")
  left_out=$((left_out + 1))
}
# bench NAME LIMIT ARGUMENTS...: as a table here, as one JSON object a line in benchmarks.jsonl.
bench() {
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" "$(at chaski)" bench "$@" --device cuda
}
# as_json NAME ARGUMENTS...: the same into benchmarks.jsonl only.
as_json() {
  local name=$1
  shift
  # shellcheck disable=SC2016
  step "$name" 60 bash -o pipefail -c '"$@" | tr -d "\n" >>"$0" && echo >>"$0"' "$out/benchmarks.jsonl" \
    "$(at chaski)" bench "$@" --device cuda --json
}

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
if timeout -k 5 60 python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
  found='tokens_per_second'
  # The same rows a step as above.
  for preset_and_rows in "llama-1b 8" "llama-350m 16"; do
    read -r preset rows_a_step <<<"$preset_and_rows"
    step "PyTorch, compiled, $preset, bf16" 90 python3 "$scripts/pytorch_baseline.py" --device cuda --preset "$preset" --batch "$rows_a_step" \
      --sequence 2048 --steps 10 --warmup 4 --compile
  done
else
  not_run "python3 has no torch that sees the GPU" PyTorch
fi
found='^nothing'
as_json "training llama-1b, bf16, as JSON" train "${shapes[@]}" --steps 5
as_json "ops of llama-1b, bf16, as JSON" ops "${shapes[@]}" --seconds 0.05

# The same training there and here, with the documentation as its text, then each from the other's checkpoint.
cat >"$runs/training.toml" <<END
[run]
output = "$runs/cpu"
seed = 1
[model]
preset = "llama-9m"
vocab_size = 1024
[data]
train = "$runs/tokens.h5"
sequence_length = 128
[optimizer]
lr = 1e-3
[schedule]
steps = 310
[parallel]
micro_batch = 8
global_batch = 8
[evaluation]
every = 0
[log]
every = 1
END
# train NAME FOLDER BACKEND ARGUMENTS...
train() {
  local name=$1 folder=$2 backend=$3
  shift 3
  step "$name" 90 "$(at chaski)" train "$runs/training.toml" --set run.output="$runs/$folder" --set device.backend="$backend" "$@"
}
found='^train'
# shellcheck disable=SC2016
step "tokens of the documentation" 30 bash -c 'cat "${@:2}" >"$1/text.txt" &&
  "$0" tokenizer "$1/text.txt" --vocab-size 1024 --out "$1/text.model" &&
  "$0" tokenize "$1/text.txt" --tokenizer "$1/text.model" --out "$1/tokens.h5" --split validation=0.05' "$(at chaski)" "$runs" "${text[@]}"
found='^(ended|finished)'
train "llama-9m, 300 steps on the CPU" cpu cpu --max-steps 300
train "llama-9m, 300 steps on the GPU, bf16" gpu cuda --max-steps 300
train "the same, without graphs" gpu-plain cuda --max-steps 300 --set device.graphs=false
# shellcheck disable=SC2016
step "graphs change no loss" 10 bash -c '[[ -s $0 && -s $1 ]] && cmp <(grep -o "\"loss\":[^,]*" "$0") <(grep -o "\"loss\":[^,]*" "$1")' \
  "$runs/gpu/metrics.jsonl" "$runs/gpu-plain/metrics.jsonl"
if command -v python3 >/dev/null; then
  found='^of means'
  step "bf16 beside the CPU's fp32, at most 1 %" 10 python3 "$scripts/loss_curves.py" "$runs/gpu" "$runs/cpu" --at-most 1
else
  not_run "there is no python3" "bf16 beside the CPU's fp32"
fi
found='^(ended|finished)'
train "the GPU's checkpoint on the CPU" gpu cpu --resume auto
train "the CPU's checkpoint on the GPU" cpu cuda --resume auto

found='ERROR SUMMARY|RACECHECK SUMMARY|^\[  (PASSED|FAILED)  \]'
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -n 1)
if [[ $quick -eq 0 && -n $sanitizer ]]; then
  for tool in memcheck racecheck initcheck; do
    step "ops under $tool" 90 "$sanitizer" --tool "$tool" --error-exitcode 9 "$(at tests/kernels_test)" \
      --gtest_filter='*/cuda_f32:*/cuda_bf16'
  done
elif [[ $quick -eq 0 ]]; then
  not_run "there is no compute-sanitizer" sanitizers
fi
{
  printf '\n'
  printf '%s\n' "${rows[@]}"
  if [[ $failed -ne 0 ]]; then
    printf 'something FAILED\n'
  elif [[ $left_out -ne 0 ]]; then
    printf 'all passed, but for %s that could not be run\n' "$left_out"
  else
    printf 'all passed\n'
  fi
} | tee -a "$log"
printf 'kept in %s\n' "$out"
exit "$failed"
