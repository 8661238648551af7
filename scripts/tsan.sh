#!/usr/bin/env bash
# ThreadSanitizer on what has threads of its own: the loader's prefetching, asynchronous saves of
# checkpoints, the parallel tokenization, the metrics file. Builds into build/tsan.
#   scripts/tsan.sh [BUILD-FOLDER]
# OpenMP runs with one thread: GCC's libgomp is not instrumented, so that its barriers would be
# reported as races. scripts/tsan.supp names the libraries that are not ours, with the reasons.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
. scripts/env.sh

build=${1:-build/tsan}
cmake --preset tsan -B "$build"
cmake --build "$build" --target data_test fault_test app_test

export OMP_NUM_THREADS=1
export TSAN_OPTIONS="suppressions=$PWD/scripts/tsan.supp halt_on_error=1 second_deadlock_stack=1"
# The sanitizer needs its part of the address space free, which randomised addresses may take.
run=()
if setarch "$(uname -m)" -R true 2>/dev/null; then run=(setarch "$(uname -m)" -R); fi

"${run[@]}" "$build/tests/data_test" --gtest_filter='Loader*:TokenizeCorpus*'
"${run[@]}" "$build/tests/fault_test" --gtest_filter='Checkpoint.*:RealFileSystem.*:OutputLock*'
"${run[@]}" "$build/tests/app_test" --gtest_filter='MetricsLog*:StopSignal*'
echo "no race was found"
