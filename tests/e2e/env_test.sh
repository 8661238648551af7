#!/usr/bin/env bash
# scripts/env.sh, sourced twice from another folder by each shell that is here: the repository's
# program and MPI are on the PATH once, before the system's, and nothing of its own is left behind.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
failures=0

for shell in bash zsh sh dash; do
  command -v "$shell" >/dev/null || continue
  # shellcheck disable=SC2016
  found=$(cd / && env -u HOME PATH=/usr/bin:/bin "$shell" -euc '
    . "$1/scripts/env.sh"
    . "$1/scripts/env.sh"
    echo "$PATH"
    set | grep -c "^chaski_env" || true
    echo "HOME ${HOME:+set}"' "$shell" "$root")
  own_mpi=
  if [[ -d $root/.deps/openmpi/bin ]]; then own_mpi=$root/.deps/openmpi/bin:; fi
  own_cmake=
  if [[ -d $root/.deps/cmake/bin ]]; then own_cmake=$root/.deps/cmake/bin:; fi
  expected="$root/build/release:$root/scripts/bin:$own_mpi$own_cmake/usr/bin:/bin"$'\n'"0"$'\n'"HOME set"
  if [[ $found == "$expected" ]]; then
    echo "ok: $shell"
  else
    printf 'FAILED: %s\n--- found\n%s\n--- expected\n%s\n' "$shell" "$found" "$expected"
    failures=$((failures + 1))
  fi
done
echo "$failures failed"
[[ $failures -eq 0 ]]
