#!/usr/bin/env bash
# From a bare machine to a trained language model, in minutes; see --help.
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/quickstart.sh [OPTION]... [-- TRAIN-ARGUMENT...]

Sets up, builds, gets text, trains a tokenizer and a small LLaMA, evaluates it and lets it write.
Prints every command before running it. Run it again to go on where it stopped: finished pieces are
skipped, and training resumes from its last checkpoint.

  --corpus FILE...   train on these files (.txt, .jsonl, also .gz, .zst) instead of the default text:
                     the King James Bible and a sample of a dictionary, from the distribution's packages
  --out DIR          where everything goes (default: runs/quickstart)
  --minutes N        train for about so long (default: 8)
  --processes N      processes that train together (default: 2, or 1 where there is one core)
  --config FILE      model and training settings (default: configs/quickstart.toml)
  --slice-kb N       only use so much of each default text (default: all)
  --steps N          train for so many steps instead of some minutes
  --no-setup         install nothing
  --no-build         use build/release/chaski as it is, or the program named by CHASKI_BIN
  --help             this help

What follows -- is passed on to `chaski train`, for example: -- --set optimizer.lr=1e-3
END
}

usage_error() {
  printf 'quickstart: error: %s\nhint: scripts/quickstart.sh --help lists the options\n' "$1" >&2
  exit 2
}

die() {
  printf 'quickstart: error: %s\n' "$1" >&2
  if [[ $# -gt 1 ]]; then printf 'hint: %s\n' "$2" >&2; fi
  exit 1
}

# Commands are shown even where their output is redirected.
exec 3>&1

heading() { printf '\n== %s\n' "$*"; }
note() { printf '%s\n' "$*"; }

# Prints a command as one would type it, then runs it.
run() {
  local word line='$'
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,+@%^-]+$ ]]; then line+=" $word"; else line+=" ${word@Q}"; fi
  done
  printf '%s\n' "$line" >&3
  "$@"
}

# A pipeline given as one string, printed and run.
run_shell() {
  printf '$ %s\n' "$1"
  bash -c "set -euo pipefail; $1"
}

is_count() { [[ $1 =~ ^[1-9][0-9]*$ ]]; }

# from_json FILE EXPRESSION: a Python expression over `rows`, the objects of a JSON or JSON-lines file.
from_json() {
  python3 -c '
import json, statistics, sys
text = open(sys.argv[1]).read()
try:
    rows = [json.loads(text)]
except json.JSONDecodeError:
    rows = [json.loads(line) for line in text.splitlines()]
print(eval(sys.argv[2]))' "$1" "$2"
}

corpus=()
default_out=runs/quickstart
out=$default_out
minutes=8
processes=
config=configs/quickstart.toml
slice_kb=0
steps=0
setup=1
build=1
train_arguments=()

# Folders are named from where the caller stands; the rest happens in the repository's root.
here=$PWD
absolute() { case $1 in /*) printf '%s' "$1" ;; *) printf '%s/%s' "$here" "$1" ;; esac; }

while [[ $# -gt 0 ]]; do
  option=$1
  shift
  case $option in
    --corpus)
      while [[ $# -gt 0 && $1 != --* ]]; do
        corpus+=("$(absolute "$1")")
        shift
      done
      [[ ${#corpus[@]} -gt 0 ]] || usage_error "--corpus needs at least one file"
      continue
      ;;
    --no-setup) setup=0 && continue ;;
    --no-build) build=0 && continue ;;
    --help | -h) usage && exit 0 ;;
    --)
      train_arguments=("$@")
      break
      ;;
    --out | --minutes | --processes | --config | --slice-kb | --steps) ;;
    *) usage_error "unknown option $option" ;;
  esac
  [[ $# -gt 0 ]] || usage_error "$option needs a value"
  value=$1
  shift
  case $option in
    --out) out=$(absolute "$value") ;;
    --config) config=$(absolute "$value") ;;
    *)
      is_count "$value" || usage_error "$option needs a whole number of at least 1, not '$value'"
      case $option in
        --minutes) minutes=$value ;;
        --processes) processes=$value ;;
        --slice-kb) slice_kb=$value ;;
        --steps) steps=$value ;;
      esac
      ;;
  esac
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
cores=$(nproc)
if [[ -z $processes ]]; then processes=$((cores < 2 ? 1 : 2)); fi
for file in "${corpus[@]}"; do [[ -r $file ]] || die "cannot read the corpus file $file"; done
[[ -r $config ]] || die "cannot read the config $config"

data=$out/data
run_folder=$out/run
started=$SECONDS
timings=()
lap_started=$SECONDS
lap() {
  timings+=("$1 $((SECONDS - lap_started)) s")
  lap_started=$SECONDS
}

# What the pieces in $out were made from: they are reused only for the same.
check_folder() {
  local made_from="corpus: ${corpus[*]:-default}; slice: $slice_kb kB; config: $config"
  mkdir -p "$data"
  if [[ -f $out/made-from ]]; then
    [[ $(cat "$out/made-from") == "$made_from" ]] ||
      die "$out holds another run ($(cat "$out/made-from"))" "name another folder with --out, or delete this one"
  else
    printf '%s\n' "$made_from" >"$out/made-from"
  fi
}

set_up() {
  heading "Set-up"
  if [[ $setup -eq 0 ]]; then
    note "skipped"
  elif [[ ${#corpus[@]} -eq 0 ]]; then
    run scripts/setup.sh --text
  else
    run scripts/setup.sh
  fi
  run . scripts/env.sh
  lap "set-up"
}

build_program() {
  heading "Build"
  if [[ $build -eq 0 ]]; then
    note "skipped"
    if [[ -n ${CHASKI_BIN:-} ]]; then PATH=$(dirname "$(absolute "$CHASKI_BIN")"):$PATH; fi
  else
    # Device code takes minutes to compile: only for a GPU that is here.
    if nvidia-smi >/dev/null 2>&1; then cuda=-DCMAKE_CUDA_ARCHITECTURES=native; else cuda=-DCHASKI_CUDA=OFF; fi
    run cmake --preset release "$cuda" >"$out/build.log" || die "cmake failed" "see $out/build.log"
    run cmake --build build/release --target chaski
  fi
  command -v chaski >/dev/null || die "there is no chaski program" "leave out --no-build"
  run chaski --version
  lap "build"
}

# The first lines of stdin that fit into $slice_kb; all of it where no slice is asked for.
slice() {
  if [[ $slice_kb -eq 0 ]]; then
    cat
  else
    awk -v limit=$((slice_kb * 1000)) '{ bytes += length($0) + 1 } bytes <= limit'
  fi
}

# The last 200 kB of the King James text are held out: the model never sees them in training.
get_king_james() {
  if [[ -f $data/kjv-heldout.txt ]]; then return; fi
  command -v bible >/dev/null || die "bible-kjv is not installed" "run scripts/setup.sh --text"
  local heldout_bytes=200000 whole=$data/kjv-whole.txt lines
  run_shell "bible -f 'Gen1:1-Rev22:21' </dev/null >$whole"
  if [[ $slice_kb -ne 0 && $((slice_kb * 250)) -lt $heldout_bytes ]]; then
    heldout_bytes=$((slice_kb * 250))
  fi
  # Whole lines (one is a verse) that fit into that many bytes.
  lines=$(tail -c "$heldout_bytes" "$whole" | tail -n +2 | wc -l)
  head -n "-$lines" "$whole" | slice >"$data/kjv.txt"
  tail -n "$lines" "$whole" >"$data/kjv-heldout.tmp"
  mv "$data/kjv-heldout.tmp" "$data/kjv-heldout.txt"
  rm "$whole"
}

# Every $1th entry of the dictionary: in the minutes that this takes the model reads some 10 MB of
# text, and most of it is to be the King James text. The first line of an entry begins in the first
# column and has the pronunciation in backslashes. Blank lines and notes of origin inside an entry are
# dropped, so that a blank line separates documents. A few bytes are Windows-1252.
get_dictionary() {
  local every=$1
  if [[ -f $data/dictionary.txt ]]; then return; fi
  [[ -r /usr/share/dictd/gcide.dict.dz ]] || die "dict-gcide is not installed" "run scripts/setup.sh --text"
  printf '$ zcat /usr/share/dictd/gcide.dict.dz | iconv -f WINDOWS-1252 -t UTF-8 | (every %dth entry) >%s\n' \
    "$every" "$data/dictionary.txt"
  zcat /usr/share/dictd/gcide.dict.dz | iconv -f WINDOWS-1252 -t UTF-8 | awk -v every="$every" '
    /^[^ ].*\\/ && after_blank { entry++ }
    { after_blank = /^[ \t]*$/ }
    after_blank || /^ *\[[^\]]*\]$/ || entry % every != 1 { next }
    entry != printed { if (printed) print ""; printed = entry }
    { print }' | slice >"$data/dictionary.tmp"
  mv "$data/dictionary.tmp" "$data/dictionary.txt"
}

get_text() {
  heading "Text"
  if [[ ${#corpus[@]} -gt 0 ]]; then
    texts=("${corpus[@]}")
  else
    get_king_james
    get_dictionary 20
    texts=("$data/kjv.txt" "$data/dictionary.txt")
  fi
  run ls -lh "${texts[@]}"
  lap "text"
}

# make_once FILE COMMAND...: runs the command that makes the file unless it is there.
make_once() {
  local file=$1
  shift
  if [[ -e $file ]]; then note "$file is there already"; else run "$@"; fi
}

make_tokens() {
  heading "Tokenizer and tokens"
  local vocab_size
  vocab_size=$(sed -nE 's/^vocab_size *= *([0-9]+).*/\1/p' "$config")
  make_once "$data/tokenizer.model" chaski tokenizer "${texts[@]}" --invalid-utf8 replace \
    --vocab-size "$vocab_size" --out "$data/tokenizer.model"
  if [[ ${#corpus[@]} -gt 0 ]]; then
    make_once "$data/train.h5" chaski tokenize "${texts[@]}" --tokenizer "$data/tokenizer.model" \
      --out "$data/train.h5" --split validation=0.01 --invalid-utf8 replace
    train_files=("$data/train.h5")
    heldout=$data/train.h5
  else
    make_once "$data/kjv.h5" chaski tokenize "$data/kjv.txt" --tokenizer "$data/tokenizer.model" \
      --out "$data/kjv.h5" --split validation=0.01
    make_once "$data/dictionary.h5" chaski tokenize "$data/dictionary.txt" \
      --tokenizer "$data/tokenizer.model" --out "$data/dictionary.h5"
    make_once "$data/kjv-heldout.h5" chaski tokenize "$data/kjv-heldout.txt" \
      --tokenizer "$data/tokenizer.model" --out "$data/kjv-heldout.h5"
    train_files=("$data/kjv.h5" "$data/dictionary.h5")
    heldout=$data/kjv-heldout.h5
  fi
  lap "tokenizer and tokens"
}

# A TOML array of strings.
toml_list() {
  local list
  list=$(printf '"%s",' "$@")
  printf '[%s]' "${list%,}"
}

# The config names the files of the default run; any other run says where its own are.
train_command() {
  local settings=()
  if [[ $out != "$default_out" || ${#corpus[@]} -gt 0 ]]; then
    settings=(--set run.output="$run_folder" --set data.train="$(toml_list "${train_files[@]}")"
      --set data.validation="$(toml_list "${train_files[0]}")")
  fi
  run mpirun -n "$processes" chaski train "$config" "${settings[@]}" "$@" "${train_arguments[@]}"
}

# The learning rate falls over the whole run, so the number of steps is fixed before the first one:
# what fits into the minutes at the speed of a few steps made for this, less some time for validation
# and checkpoints.
decide_steps() {
  if [[ -f $out/steps ]]; then
    steps=$(cat "$out/steps")
  else
    if [[ $steps -eq 0 ]]; then
      note "How fast is this machine?"
      train_command --set run.output="$out/speed-test" --max-steps 12
      steps=$(from_json "$out/speed-test/metrics.jsonl" \
        "max(20, round(0.95 * $minutes * 60 / statistics.mean(row['seconds'] for row in rows[2:])))")
      rm -rf "$out/speed-test"
      note "$steps steps fit into $minutes minute$([[ $minutes == 1 ]] || echo s)"
    fi
    printf '%s\n' "$steps" >"$out/steps"
  fi
}

last_step() {
  if [[ -s $run_folder/metrics.jsonl ]]; then
    from_json "$run_folder/metrics.jsonl" "rows[-1]['step']"
  else
    echo 0
  fi
}

train() {
  heading "Training"
  if [[ -f $out/trained ]]; then
    note "finished already ($(cat "$out/steps") steps); delete $out to start over"
    lap "training"
    return
  fi
  decide_steps
  lap "measuring speed"
  # Whether training finished is told by its records: mpirun's exit status is not 0 after Ctrl-C, nor
  # when a process died and the others went on.
  train_command --set schedule.steps="$steps" --resume auto || true
  [[ $(last_step) -ge $steps ]] ||
    die "training stopped at step $(last_step) of $steps" "run the same command again to go on"
  touch "$out/trained"
  lap "training"
}

evaluate() {
  heading "Evaluation"
  if [[ ! -f $out/eval.json ]]; then
    run chaski eval --checkpoint "$run_folder" --data "$heldout" --json >"$out/eval.tmp"
    mv "$out/eval.tmp" "$out/eval.json"
  fi
  cat "$out/eval.json"
  lap "evaluation"
}

sample() {
  heading "A sample"
  local prompt="And it came to pass"
  if [[ ${#corpus[@]} -gt 0 ]]; then prompt="The"; fi
  if [[ -f $out/sample.txt ]]; then
    cat "$out/sample.txt"
  else
    run chaski generate --checkpoint "$run_folder" --prompt "$prompt" \
      --max-tokens 120 --temperature 0.8 --top-p 0.95 --seed 1 | tee "$out/sample.tmp"
    mv "$out/sample.tmp" "$out/sample.txt"
  fi
  lap "sample"
}

summary() {
  local text=$data/kjv-heldout.txt bytes xz_bytes
  heading "Done in $((SECONDS - started)) s: $(printf '%s; ' "${timings[@]}")"
  cat <<END
text and tokens    $data
model              $run_folder
metrics, by step   $run_folder/metrics.jsonl
evaluation         $out/eval.json
sample             $out/sample.txt
To use the program yourself: . scripts/env.sh; chaski --help
END
  if [[ ${#corpus[@]} -gt 0 ]]; then
    from_json "$out/eval.json" "'held-out text: perplexity {perplexity:.2f}, {bits_per_byte:.3f} bits per byte'.format(**rows[0])"
  else
    bytes=$(wc -c <"$text")
    xz_bytes=$(xz -9e --stdout "$text" | wc -c)
    from_json "$out/eval.json" "'held-out King James text ($bytes bytes): this model {:.3f} bits per byte, xz -9e {:.3f}'.format(rows[0]['bits_per_byte'], 8 * $xz_bytes / $bytes)"
  fi
}

check_folder
set_up
build_program
get_text
make_tokens
train
evaluate
sample
summary
