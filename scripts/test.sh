#!/usr/bin/env bash
# Sets up, builds and runs every test; those that need a GPU are skipped where there is none.
#   scripts/test.sh                 all of them
#   scripts/test.sh -L unit         arguments are ctest's: here, only the tests labelled unit
set -euo pipefail
case "${1:-}" in
  -h | --help)
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh --text
# shellcheck source=scripts/env.sh
. scripts/env.sh

# One architecture is enough to compile the GPU code; nothing here runs it.
cmake --preset release -DCMAKE_CUDA_ARCHITECTURES="${CHASKI_TEST_CUDA_ARCHITECTURES:-90}"
cmake --build --preset release

# Each test is registered with the cores that it takes, for two threads a process; threads that wait
# give up their core.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
ctest --preset release --no-tests=error --parallel "$(nproc)" "$@"
