#!/bin/bash
# The program as a user meets it: exit codes, one-line errors with hints, help, versions, the config's
# way through --print-config. Usage: command_line_test.sh CHASKI SOURCE_DIR
set -u
chaski=$1
source_dir=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

fail() {
  echo "FAILED: $*"
  sed 's/^/  stdout: /' "$work/out" | head -5
  sed 's/^/  stderr: /' "$work/err" | head -5
  failures=$((failures + 1))
}

# expect CODE COMMAND…: runs it; its output is then in out and err.
expect() {
  local code=$1
  shift
  command_line="$*"
  "$@" >"$work/out" 2>"$work/err" </dev/null
  local status=$?
  [ $status -eq "$code" ] || fail "$command_line: exit code $status, not $code"
}

# The error is one line with this beginning, perhaps with one hint, and nothing else.
error_is() {
  local lines
  lines=$(wc -l <"$work/err")
  case $(head -1 "$work/err") in
    "chaski: error: $1"*) ;;
    *) fail "$command_line: expected the error '$1…'" ;;
  esac
  [ "$lines" -eq 1 ] || { [ "$lines" -eq 2 ] && sed -n 2p "$work/err" | grep -q '^hint: '; } ||
    fail "$command_line: more than an error and a hint"
  [ ! -s "$work/out" ] || fail "$command_line: an error, and output on stdout"
}
hint_has() { sed -n 2p "$work/err" | grep -qF -- "$1" || fail "$command_line: no hint '$1'"; }
out_has() { grep -qF -- "$1" "$work/out" || fail "$command_line: '$1' is not in its output"; }

commands="tokenizer tokenize plan train eval generate inspect export import bench"

expect 2 "$chaski"
grep -q "train" "$work/err" || fail "no help without a command"
expect 0 "$chaski" --help
for command in $commands; do out_has "$command"; done
grep -q config-reference "$work/out" && fail "the hidden command is listed"
for command in $commands; do
  expect 0 "$chaski" "$command" --help
  out_has "--help"
done
expect 0 "$chaski" --version
for what in "chaski 0." "commit " "compiler: " "instruction set: " "CUDA: " "MPI: " "oneDNN: " "HDF5: " \
  "SentencePiece: "; do
  out_has "$what"
done
# Its libraries are found in an empty environment too.
expect 0 env -i ${ASAN_OPTIONS:+ASAN_OPTIONS="$ASAN_OPTIONS"} "$chaski" --version

expect 2 "$chaski" trian
error_is "unknown command 'trian'"
hint_has "did you mean \`chaski train\`?"
expect 2 "$chaski" frobnicate
error_is "unknown command 'frobnicate'"
expect 2 "$chaski" --verbos
error_is "the following argument was not expected: --verbos"
expect 2 "$chaski" train
error_is "train: config is required"
expect 2 "$chaski" train x.toml --max-stesp 3
hint_has "did you mean --max-steps?"
expect 2 "$chaski" train x.toml --max-steps many
error_is "train: "

error_is "train: --max-steps: must be a whole number of at least 1, not 'many'"
expect 2 "$chaski" plan x.toml --processes 0
error_is "plan: --processes: must be a whole number of at least 1, not '0'"
hint_has "\`chaski plan --help\`"
for size in nonsense -1 ""; do
  expect 2 "$chaski" plan x.toml --device-memory "$size"
  error_is "plan: --device-memory: must be a size such as 512, \"500 MB\" or 1.5GiB, not '$size'"
done
expect 2 "$chaski" plan x.toml --device-memory 0
error_is "plan: --device-memory: must be a size above 0, not '0'"
expect 2 "$chaski" bench gemm --device gpu
error_is "bench gemm: --device: must be one of auto, cpu, cuda, not 'gpu'"
expect 2 "$chaski" bench gemm --precision fp16
error_is "bench gemm: --precision: must be one of auto, fp32, tf32, bf16, bf16-pure, not 'fp16'"
expect 2 "$chaski" bench gemm --device cpu --precision bf16
error_is '--precision is "bf16" but the CPU computes in fp32'
expect 2 "$chaski" export --checkpoint x --out y --dtype fp64
error_is "export: --dtype: must be one of fp32, bf16, not 'fp64'"
expect 0 "$chaski" export --help
out_has "--dtype {fp32,bf16}"
# No GPU is seen, be there one or not.
for command in "bench gemm" "bench ops" "bench decode" "bench train"; do
  # shellcheck disable=SC2086
  expect 2 env CUDA_VISIBLE_DEVICES= "$chaski" $command --device cuda
  error_is '--device is "cuda", but '
done
expect 2 "$chaski" bench gemm --seconds nan
error_is "bench gemm: --seconds: must be a number of at least 0, not 'nan'"
expect 2 "$chaski" bench gem
error_is "unknown command 'gem' of bench"
hint_has "did you mean \`chaski bench gemm\`?"
expect 2 "$chaski" bench frobnicate
error_is "unknown command 'frobnicate' of bench"
hint_has "\`chaski bench --help\` lists"
expect 2 "$chaski" bench
error_is "bench: must be followed by one of train, gemm, ops"
expect 2 "$chaski" bench --presett x
error_is "bench: must be followed by one of train, gemm, ops"
hint_has "\`chaski bench --help\`"
expect 2 "$chaski" bench gemm --presett x
error_is "bench gemm: the following arguments were not expected: --presett x"
hint_has "did you mean --preset? \`chaski bench gemm --help\`"
expect 2 "$chaski" bench gemm --preset llama-8m
error_is "bench gemm: --preset: must be one of llama-9m, llama-20m"
expect 2 "$chaski" bench tokenize --tokenizer "$work/nothing.model"
error_is "--tokenizer names $work/nothing.model: No such file"
expect 2 "$chaski" bench tokenize "$work/nothing.txt"
error_is "$work/nothing.txt"

cat >"$work/run.toml" <<'TOML'
[model]
preset = "llama-9m"
vocab_size = 512
[data]
train = "/nonexistent/corpus.h5"
[schedule]
steps = 20
TOML

expect 2 "$chaski" train "$work/missing.toml"
error_is "$work/missing.toml: the config cannot be read: No such file or directory"
sed 's/vocab_size/vocab_sise/' "$work/run.toml" >"$work/slip.toml"
expect 2 "$chaski" train "$work/slip.toml"
error_is "$work/slip.toml:3: unknown key model.vocab_sise"
hint_has "did you mean model.vocab_size?"
expect 2 "$chaski" train "$work/run.toml" --set optimizer.lr=-1
error_is "--set optimizer.lr=-1: optimizer.lr is -1 but must be above 0"
for command in train plan; do
  expect 2 "$chaski" "$command" "$work/run.toml" --set optimizer.epsilon=1
  error_is "--set optimizer.epsilon=1: optimizer.epsilon is 1 but must be at least 1e-30 and below 1"
done
expect 2 "$chaski" train "$work/run.toml" --set model.num_heads=3
error_is "--set model.num_heads=3: "
# Without mpirun, and without what a shell sets up for MPI.
expect 2 env -i ${ASAN_OPTIONS:+ASAN_OPTIONS="$ASAN_OPTIONS"} "$chaski" train "$work/run.toml" --set run.output="$work/run"
error_is "data.train names /nonexistent/corpus.h5: no such file"
[ ! -e "$work/run" ] || fail "a refused run has made its output directory"

# A plan may come before the number of steps, a run may not.
grep -v "^steps" "$work/run.toml" >"$work/stepless.toml"
expect 2 "$chaski" train "$work/stepless.toml"
error_is "$work/stepless.toml: schedule.steps is missing"
expect 0 "$chaski" plan "$work/stepless.toml" --no-measure
out_has "what if"
expect 0 "$chaski" plan "$work/stepless.toml" --device-memory 80GiB --gemm-tflops 600 --memory-bandwidth 3000
out_has "tokens/s; schedule.steps is not given"
expect 0 "$chaski" plan "$work/stepless.toml" --device-memory 80GiB --gemm-tflops 600 --memory-bandwidth 3000 --json
out_has '"schedule_seconds": null'
expect 0 "$chaski" plan "$work/run.toml" --device-memory 80GiB --gemm-tflops 600 --memory-bandwidth 3000
out_has "the schedule of 20 steps takes"

# Every default is printed, and what is printed is the same config.
expect 0 "$chaski" train "$work/run.toml" --print-config --set optimizer.lr=0.25
out_has "lr = 0.25"
out_has "warmup_steps = 2"
cp "$work/out" "$work/resolved.toml"
expect 0 "$chaski" train "$work/resolved.toml" --print-config
cmp -s "$work/out" "$work/resolved.toml" || fail "the printed config does not print itself"

expect 0 "$chaski" config-reference
cmp -s "$work/out" "$source_dir/docs/config.md" || fail "docs/config.md differs from the schema"

expect 2 "$chaski" generate --checkpoint "$work/nothing" --prompt x
error_is ""
expect 2 "$chaski" eval --checkpoint "$work/nothing" --data "$work/nothing.h5"
error_is ""
expect 2 "$chaski" inspect "$work/nothing"
error_is ""
echo "no token file" >"$work/text.h5"
expect 2 "$chaski" train "$work/run.toml" --set data.train="$work/text.h5" --set run.output="$work/run"
error_is ""

# A tiny run, whose console is off: nothing is said.
for i in $(seq 1 300); do echo "the quick brown fox number $i jumps over the lazy dog of day $((i * 7 % 31))"; done >"$work/corpus.txt"
expect 0 "$chaski" tokenizer "$work/corpus.txt" --vocab-size 300 --out "$work/tokenizer.model"
expect 0 "$chaski" tokenize "$work/corpus.txt" --tokenizer "$work/tokenizer.model" --out "$work/tokens.h5"
expect 0 "$chaski" train "$work/run.toml" --set data.train="$work/tokens.h5" --set run.output="$work/run" \
  --set data.sequence_length=16 --set model.num_layers=1 --set model.num_heads=3 --set model.head_dim=8 \
  --set schedule.steps=1 --set parallel.micro_batch=1 --set parallel.global_batch=1 \
  --set log.console=off
[ ! -s "$work/out" ] && [ ! -s "$work/err" ] || fail "log.console=off still prints"
expect 2 env CUDA_VISIBLE_DEVICES= "$chaski" train "$work/run.toml" --set data.train="$work/tokens.h5" \
  --set run.output="$work/on-gpu" --set device.backend=cuda
error_is 'device.backend is "cuda", but '

expect 0 "$chaski" eval --checkpoint "$work/run" --data "$work/tok*.h5" --max-tokens 20
out_has "32 tokens"
out_has "16 tokens each (as in training)"
expect 2 "$chaski" eval --checkpoint "$work/run" --data "$work/nothing.h5"
error_is "--data names $work/nothing.h5: no such file"
expect 2 "$chaski" eval --checkpoint "$work/run" --data "$work/*.none"
error_is "--data names $work/*.none, which matches no file"
expect 0 "$chaski" export --checkpoint "$work/run" --out "$work/exported"
grep -q "warning: newer versions of transformers refuse" "$work/err" || fail "export does not warn"

# Damage that leaves valid ids: eval refuses, train warns.
bytes=$(stat -c %s "$work/tokens.h5")
cp "$work/tokens.h5" "$work/flipped.h5"
printf '\001\000\001\000' | dd of="$work/flipped.h5" bs=1 seek=$((bytes / 2 / 2 * 2)) conv=notrunc 2>/dev/null
expect 1 "$chaski" inspect "$work/flipped.h5" --verify
error_is "$work/flipped.h5 "
expect 0 "$chaski" inspect "$work/flipped.h5"
out_has "not checked; --verify reads all"
expect 1 "$chaski" eval --checkpoint "$work/run" --data "$work/flipped.h5"
grep -q "the checksum of its .* is wrong" "$work/err" || fail "eval does not verify the token file"

# What inspect cannot read: 1 for damage, 2 for files of other kinds.
head -c $((bytes / 2)) "$work/tokens.h5" >"$work/half.h5"
expect 1 "$chaski" inspect "$work/half.h5"
error_is "$work/half.h5: the token file is damaged"
cp "$work/tokens.h5" "$work/unsigned.h5"
printf 'X' | dd of="$work/unsigned.h5" bs=1 seek=1 conv=notrunc 2>/dev/null
expect 1 "$chaski" inspect "$work/unsigned.h5"
error_is "$work/unsigned.h5: looks like a token file, but is damaged"
head -c 100 "$work/tokens.h5" >"$work/stump.h5"
expect 1 "$chaski" inspect "$work/stump.h5"
error_is "$work/stump.h5: looks like a damaged HDF5 file"
mkdir "$work/near"
cp "$work/run/checkpoints/step-00000001/"shard-* "$work/near"
expect 1 "$chaski" inspect "$work/near"
error_is "$work/near: looks like a checkpoint, but is damaged: it has no file COMPLETE"
cp "$work/near/"shard-* "$work/renamed.bin"
expect 1 "$chaski" inspect "$work/renamed.bin"
error_is "$work/renamed.bin: looks like a checkpoint's shard"
expect 2 "$chaski" inspect "$work/corpus.txt"
error_is "$work/corpus.txt: looks like text"
expect 2 "$chaski" inspect "$work/tokenizer.model"
error_is "$work/tokenizer.model: looks like a SentencePiece model"
printf '\037\213\010' >"$work/packed"
expect 2 "$chaski" inspect "$work/packed"
error_is "$work/packed: looks like gzip-compressed data"

expect 0 "$source_dir/scripts/test.sh" --help
out_has "scripts/test.sh -L unit"

[ $failures -eq 0 ] && echo "all passed"
exit $((failures > 0))
