#!/bin/bash
# A run that is asked to stop saves and ends in order, and goes on from there: SIGTERM and SIGINT without
# mpirun, SIGUSR1 sent to mpirun. And an error that one process of several has in the midst of MPI ends
# the job. Usage: stop_test.sh CHASKI MPIRUN
set -u
chaski=$1
mpirun=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0
flags=()
if "$mpirun" --version 2>/dev/null | grep -Eq "Open MPI|OpenRTE|PRRTE|prte"; then
  flags=(--oversubscribe --bind-to none)
fi

fail() {
  echo "FAILED: $*"
  tail -n 5 out err 2>/dev/null | sed 's/^/  /'
  failures=$((failures + 1))
}

for i in $(seq 60); do
  for j in $(seq 40); do printf 'w%s ' $(((i * j * 7919 + j * 31) % 97)); done
  printf '\n\n'
done >text.txt
"$chaski" tokenizer text.txt --vocab-size 272 --out t.model >out 2>err &&
  "$chaski" tokenize text.txt --tokenizer t.model --out tokens.h5 >out 2>err || { fail "no token file"; exit 1; }
cat >run.toml <<'TOML'
[model]
hidden_size = 32
intermediate_size = 64
num_layers = 2
num_heads = 2
vocab_size = 272
[data]
train = "tokens.h5"
sequence_length = 32
[schedule]
steps = 1000000
[parallel]
micro_batch = 2
global_batch = 4
[checkpoint]
every = 0
TOML

# stopped SIGNAL COMMAND…: started, signalled after its tenth step; must end with 0 and a checkpoint
# of the last step in the metrics.
stopped() {
  local signal=$1
  shift
  rm -rf run
  "$@" train run.toml --set run.output=run >out 2>err </dev/null &
  local process=$!
  for _ in $(seq 600); do
    [ -f run/metrics.jsonl ] && [ "$(wc -l <run/metrics.jsonl)" -ge 10 ] && break
    kill -0 $process 2>/dev/null || break
    sleep 0.1
  done
  kill -"$signal" $process
  wait $process
  local status=$?
  [ $status -eq 0 ] || fail "$signal $1: exit code $status"
  local step
  step=$(tail -1 run/metrics.jsonl | sed 's/{"step":\([0-9]*\),.*/\1/')
  [ -f "run/checkpoints/$(printf 'step-%08d' "$step")/COMPLETE" ] ||
    fail "$signal $1: no checkpoint of step $step: $(ls run/checkpoints)"
}

stopped TERM "$chaski"
stopped INT "$chaski"
if [ ${#flags[@]} -gt 0 ]; then
  stopped USR1 "$mpirun" "${flags[@]}" -n 2 "$chaski"
else
  stopped TERM "$chaski"
fi
before=$(tail -1 run/metrics.jsonl | sed 's/{"step":\([0-9]*\),.*/\1/')
"$chaski" train run.toml --set run.output=run --resume auto --max-steps 3 >out 2>err || fail "no resumption"
after=$(tail -1 run/metrics.jsonl | sed 's/{"step":\([0-9]*\),.*/\1/')
[ "$after" -eq $((before + 3)) ] || fail "resumed from $before, but then at $after"

cat >one_fails.sh <<'SH'
#!/bin/bash
rank=${OMPI_COMM_WORLD_RANK:-${PMIX_RANK:-${PMI_RANK:-0}}}
[ "$rank" = 1 ] && exec "$@" --set data.train=missing.h5
exec "$@"
SH
chmod +x one_fails.sh
timeout 100 "$mpirun" "${flags[@]}" -n 2 ./one_fails.sh "$chaski" train run.toml --set run.output=run2 \
  >out 2>err </dev/null
status=$?
[ $status -eq 2 ] || fail "error of one rank: exit code $status"
[ "$(grep -c '^chaski: error: ' err)" -eq 1 ] || fail "error of one rank: not told once"
grep -q '^chaski: error: rank 1: data.train names missing.h5' err || fail "error of one rank: not named"

[ $failures -eq 0 ] && echo "all passed"
exit $((failures > 0))
