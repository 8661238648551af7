#!/usr/bin/env bash
# ThreadSanitizer on what has threads of its own: the loader's prefetching, asynchronous saves of
# checkpoints, the parallel tokenization, the metrics file. First their tests, then short trainings with
# a save at every step, alone and under mpirun. Builds into build/tsan.
#   scripts/tsan.sh [BUILD-FOLDER]
# GCC's libgomp is not instrumented: its barriers would be reported as races. So OpenMP runs with one
# thread. Where LLVM's OpenMP runtime and its tool Archer are found (package libomp-dev), which tell the
# sanitizer what the barriers order, the kernels and a training run with two threads as well.
# scripts/tsan.supp names the libraries that are not ours, with the reasons.
set -euo pipefail
case "${1:-}" in
  -h | --help)
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
  -*)
    printf 'tsan.sh: error: unknown option %s\nhint: --help shows what can be given\n' "$1" >&2
    exit 2
    ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
. scripts/env.sh

root=$PWD
build=$(realpath -m "${1:-build/tsan}")
cmake --preset tsan -B "$build"
cmake --build "$build" --target chaski data_test fault_test app_test kernels_test

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
options="suppressions=$root/scripts/tsan.supp halt_on_error=1 second_deadlock_stack=1"
export TSAN_OPTIONS=$options OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
# UCX, a part of Open MPI, hooks into madvise(), which a thread calls when the sanitizer has already
# taken leave of it. PMIx wants its shared memory where the sanitizer lets nothing be.
export UCX_MEM_MMAP_HOOK_MODE=none PMIX_MCA_gds=hash
# The sanitizer needs its part of the address space free, which randomised addresses may take.
run=()
if setarch "$(uname -m)" -R true 2>/dev/null; then run=(setarch "$(uname -m)" -R); fi

room() { "${run[@]}" "$build/tests/$1_test" --gtest_brief=1 --gtest_filter="$2"; }
chaski() { "${run[@]}" "$build/chaski" "$@"; }

room data 'Loader*:TokenizeCorpus*'
room fault 'Checkpoint.*:RealFileSystem.*:OutputLock*'
room app 'MetricsLog*:StopSignal*'

cd "$work"
cat "$root"/README.md "$root"/docs/*.md >text.txt
chaski tokenizer text.txt --vocab-size 600 --out t.model
chaski tokenize text.txt --tokenizer t.model --out t.h5 --threads 3 --split validation=0.05
cat >run.toml <<'END'
[model]
hidden_size = 128
intermediate_size = 344
num_layers = 4
num_heads = 4
vocab_size = 600
[data]
train = "t.h5"
sequence_length = 32
reset_at_documents = true
[schedule]
steps = 40
[parallel]
micro_batch = 2
global_batch = 4
[evaluation]
every = 10
tokens = 512
[checkpoint]
every = 1
[log]
every = 1
END
# train NAME LAUNCHER... -- SETTING...: a save at every step.
train() {
  local name=$1 launcher=() settings=()
  shift
  while [[ $1 != -- ]]; do launcher+=("$1") && shift; done
  shift
  local setting
  for setting in "run.output=$name" "$@"; do settings+=(--set "$setting"); done
  "${launcher[@]}" "${run[@]}" "$build/chaski" train run.toml "${settings[@]}" --resume auto
}
train alone -- schedule.steps=20
train alone -- schedule.steps=40
# Steps that are shorter than a save: what has not been read must be copied before each update.
train hasty -- schedule.steps=20 data.sequence_length=8 parallel.micro_batch=1 parallel.global_batch=1
train replicas mpirun -n 2 -- schedule.steps=10
train stages mpirun -n 2 -- schedule.steps=10 parallel.pipeline=2

archer=$(find /usr/lib -name libarcher.so 2>/dev/null | sort | tail -n 1)
if [[ -n $archer && -e ${archer%/*}/libomp.so ]]; then
  # It can stand in for libgomp, for oneDNN too.
  mkdir llvm
  ln -s "${archer%/*}/libomp.so" llvm/libgomp.so.1
  export LD_LIBRARY_PATH=$work/llvm${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} OMP_TOOL_LIBRARIES=$archer
  export OMP_NUM_THREADS=2 TSAN_OPTIONS="$options ignore_noninstrumented_modules=1"
  room kernels '*'
  train threads -- schedule.steps=20
else
  echo "there is no Archer: OpenMP ran with one thread only"
fi
echo "no race was found"
