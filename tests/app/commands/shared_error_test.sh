#!/bin/bash
# Errors under mpirun: whatever processes have one, it is printed once, the job ends, and mpirun returns
# its exit code. Usage: shared_error_test.sh CHASKI MPIRUN
set -u
chaski=$1
mpirun=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0
flags=()
if "$mpirun" --version 2>/dev/null | grep -Eq "Open MPI|OpenRTE|PRRTE|prte"; then
  flags=(--oversubscribe --bind-to none)
fi

# once NAME CODE ERROR COMMAND…: on three processes, ends in time with the code and one error line.
once() {
  local name=$1 code=$2 error=$3
  shift 3
  timeout 100 "$mpirun" "${flags[@]}" -n 3 "$@" >"$work/out" 2>"$work/err" </dev/null
  local status=$?
  if [ $status -ne "$code" ] || [ "$(grep -c '^chaski: error: ' "$work/err")" -ne 1 ] ||
    ! grep -qF "chaski: error: $error" "$work/err"; then
    echo "FAILED: $name: exit code $status, wanted $code and once '$error'"
    sed 's/^/  stderr: /' "$work/err" | head -20
    failures=$((failures + 1))
  fi
}

cat >"$work/run.toml" <<'TOML'
[model]
preset = "llama-9m"
[data]
train = "/nonexistent/corpus.h5"
[schedule]
steps = 20
[parallel]
global_batch = 24
TOML
train=("$chaski" train "$work/run.toml" --set "run.output=$work/run")

once "command line" 2 "unknown command 'trian'" "$chaski" trian
once "config" 2 "--set optimizer.lr=-1: optimizer.lr is -1" "${train[@]}" --set optimizer.lr=-1
once "layout" 2 "parallel.global_batch is 8 but" "${train[@]}" --set parallel.global_batch=8
once "missing file" 2 "data.train names /nonexistent/corpus.h5" "${train[@]}"

# One process alone: before MPI is started, and after it, while the others wait for it in MPI.
cat >"$work/one_fails.sh" <<'SH'
#!/bin/bash
# one_fails.sh RANK OVERRIDE COMMAND…
rank=${OMPI_COMM_WORLD_RANK:-${PMIX_RANK:-${PMI_RANK:-0}}}
failing=$1 override=$2
shift 2
[ "$rank" = "$failing" ] && exec "$@" --set "$override"
exec "$@"
SH
chmod +x "$work/one_fails.sh"
once "config of rank 2" 2 "--set optimizer.lr=-1: optimizer.lr is -1" \
  "$work/one_fails.sh" 2 optimizer.lr=-1 "${train[@]}" --set parallel.global_batch=24

[ $failures -eq 0 ] && echo "all passed"
exit $((failures > 0))
