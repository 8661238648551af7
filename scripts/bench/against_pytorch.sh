#!/usr/bin/env bash
# Trains the same model with Chaski and with PyTorch, in turns; see --help.
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/bench/against_pytorch.sh [options]

Measures training steps of the same model on random tokens: `chaski bench train`, PyTorch eager and PyTorch
with torch.compile, one after the other, several rounds, so that what else the machine does meets all of
them. Prints the medians, the spreads, and Chaski's ratio to the better of PyTorch's two.

  --preset NAME     model shape (llama-60m)
  --batch N         rows of a micro-batch, one a step (8)
  --sequence N      tokens of a row (256)
  --threads N       of each program (all cores)
  --rounds N        (3)
  --steps N         measured steps a round (5), after 2 that are not
  --venv DIR        PyTorch's virtual environment, made where it is missing (.deps/pytorch)
  --requirements F  install these versions into it, not the newest of torch and transformers
  --json FILE       also write all results there, one JSON object a line
  --help            this help

torch.compile needs g++ and Python's headers (Debian: python3-dev); a variant that fails is named and left
out. Build first: cmake --preset release && cmake --build --preset release; CHASKI names another program.
END
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
preset=llama-60m batch=8 sequence=256 threads=$(nproc) rounds=3 steps=5
venv=$root/.deps/pytorch requirements='' results=''
while [ $# -gt 0 ]; do
  case $1 in
    --help) usage; exit 0 ;;
    --preset | --batch | --sequence | --threads | --rounds | --steps | --venv | --requirements | --json)
      [ $# -ge 2 ] || { echo "against_pytorch.sh: $1 needs a value" >&2; exit 2; }
      name=${1#--}
      [ "$name" = json ] && name=results
      printf -v "$name" '%s' "$2"
      shift 2
      ;;
    *) echo "against_pytorch.sh: unknown option $1; see --help" >&2; exit 2 ;;
  esac
done

chaski=${CHASKI:-$root/build/release/chaski}
[ -x "$chaski" ] || { echo "against_pytorch.sh: no program at $chaski; see --help" >&2; exit 2; }
# shellcheck source=scripts/env.sh
. "$root/scripts/env.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ -n "$results" ] || results=$work/results.jsonl
: >"$results"

python=$venv/bin/python
if ! "$python" -c 'import torch, transformers' 2>/dev/null; then
  echo "setting up PyTorch in $venv"
  python3 -m venv "$venv"
  # The index of builds without CUDA, which are a tenth of the size and the same on a CPU.
  packages=(torch transformers)
  [ -z "$requirements" ] || packages=(-r "$requirements")
  "$venv/bin/pip" install --quiet --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu "${packages[@]}"
fi

# run VARIANT COMMAND…: appends the JSON object that the command prints, with the variant's name.
run() {
  local variant=$1
  shift
  if ! "$@" >"$work/out" 2>"$work/err"; then
    echo "  $variant failed: $(tail -n 1 "$work/err")"
    return
  fi
  python3 - "$variant" "$work/out" "$results" <<'PY'
import json, sys
variant, source, target = sys.argv[1:]
text = open(source).read()
report = json.loads(text[text.index("{"):])
report["variant"] = variant
with open(target, "a") as file:
    print(json.dumps(report), file=file)
print(f"  {variant:<17}{report['tokens_per_second']:10.0f} tokens/s")
PY
}

pytorch=("$python" "$root/scripts/bench/pytorch_baseline.py" --preset "$preset" --batch "$batch"
  --sequence "$sequence" --threads "$threads" --steps "$steps")
for round in $(seq "$rounds"); do
  echo "round $round of $rounds"
  run chaski "$chaski" bench train --preset "$preset" --micro-batch "$batch" \
    --sequence-length "$sequence" --threads "$threads" --steps "$steps" --json
  run "PyTorch eager" "${pytorch[@]}"
  run "PyTorch compiled" "${pytorch[@]}" --compile
done

python3 - "$results" <<'PY'
import json, statistics, sys
runs = {}
for line in open(sys.argv[1]):
    report = json.loads(line)
    runs.setdefault(report["variant"], []).append(report)
if "chaski" not in runs or len(runs) < 2:
    sys.exit("against_pytorch.sh: too few of the programs ran to compare them")
MIB = 1 << 20
print(f"\n{'':<17}{'tokens/s':>10}{'lowest':>10}{'highest':>10}{'peak MiB':>10}{'own MiB':>10}")
rate, memory = {}, {}
for variant, reports in runs.items():
    rates = [report["tokens_per_second"] for report in reports]
    rate[variant] = statistics.median(rates)
    peak = max(report.get("peak_resident_bytes", report.get("peak_rss_bytes")) for report in reports)
    # What the interpreter takes with its libraries before there is a model is not the training's.
    memory[variant] = peak - max(report.get("imported_rss_bytes", 0) for report in reports)
    print(f"{variant:<17}{rate[variant]:10.0f}{min(rates):10.0f}{max(rates):10.0f}{peak / MIB:10.0f}"
          f"{memory[variant] / MIB:10.0f}")
others = [variant for variant in runs if variant != "chaski"]
best = max(others, key=rate.get)
print(f"\n{runs[others[0]][0]['framework']}")
print(f"tokens/s: chaski is at {rate['chaski'] / rate[best]:.2f} of {best}")
for variant in others:
    print(f"memory: chaski takes {memory['chaski'] / memory[variant]:.2f} of {variant}, whose interpreter is not counted")
PY
