#!/usr/bin/env bash
# The README's path, on a slice of the text and with a small fixed budget: runs scripts/quickstart.sh
# with the program that was built, and checks what it leaves behind.
# usage: quickstart_test.sh PATH-OF-CHASKI        exit code 77: the texts are not installed (skipped)
set -euo pipefail

# Nats per token. Knowing only how frequent each token is in the training text gives 5.87; knowing
# its frequency in the held-out text itself would give 5.51: below that, context is being used.
loss_bound=5.3
steps=100

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
if [[ $# -ne 1 || ! -x $1 ]]; then
  echo "usage: quickstart_test.sh PATH-OF-CHASKI" >&2
  exit 2
fi
CHASKI_BIN=$(realpath "$1")
export CHASKI_BIN
if ! command -v bible >/dev/null || [[ ! -r /usr/share/dictd/gcide.dict.dz ]]; then
  echo "skipped: bible-kjv or dict-gcide is not installed (scripts/setup.sh --text)"
  exit 77
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failures=0
expect() {
  local what=$1
  shift
  if "$@"; then
    echo "ok: $what"
  else
    echo "FAILED: $what"
    failures=$((failures + 1))
  fi
}

quickstart() {
  "$root/scripts/quickstart.sh" --no-setup --no-build --slice-kb 400 --steps "$steps" \
    --out "$folder/out" "$@" -- \
    --set model.hidden_size=128 --set model.intermediate_size=344 --set model.num_layers=2
}

sed -E 's/^vocab_size *=.*/vocab_size = 1024/' "$root/configs/quickstart.toml" >"$folder/config.toml"
quickstart --config "$folder/config.toml" | tee "$folder/first.log"

out=$folder/out
for file in data/tokenizer.model data/kjv.h5 data/dictionary.h5 data/kjv-heldout.h5 eval.json \
  run/config.toml run/metrics.jsonl run/checkpoints/latest; do
  expect "$file exists" test -e "$out/$file"
done
expect "the held-out text is not in the training text" \
  python3 - "$out/data/kjv.txt" "$out/data/kjv-heldout.txt" <<'END'
import sys
training, heldout = (set(open(path).read().splitlines()) for path in sys.argv[1:])
sys.exit(bool(training & heldout) or not heldout)
END
expect "metrics.jsonl has one object a step, and the loss falls" \
  python3 - "$out/run/metrics.jsonl" "$steps" <<'END'
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
steps = [row["step"] for row in rows if "loss" in row]
losses = [row["loss"] for row in rows if "loss" in row]
sys.exit(steps != list(range(1, int(sys.argv[2]) + 1)) or not sum(losses[-5:]) < sum(losses[:5]))
END
expect "the loss on the held-out text is below $loss_bound" python3 - "$out/eval.json" "$loss_bound" <<'END'
import json, math, sys
result = json.load(open(sys.argv[1]))
print(result)
good = 0 < result["loss"] < float(sys.argv[2])
consistent = math.isclose(result["perplexity"], math.exp(result["loss"]), rel_tol=1e-4)
sys.exit(not (good and consistent and result["tokens"] > 1000 and result["bits_per_byte"] > 0))
END
expect "the sample goes on after its prompt" grep -qE '^And it came to pass.+' "$out/sample.txt"
expect "the comparison with xz is printed" grep -q 'bits per byte, xz -9e [0-9]' "$folder/first.log"

cp "$out/run/metrics.jsonl" "$folder/metrics-before.jsonl"
quickstart --config "$folder/config.toml" >"$folder/second.log"
expect "a second run trains nothing" cmp "$out/run/metrics.jsonl" "$folder/metrics-before.jsonl"
expect "a second run says so" grep -q 'finished already' "$folder/second.log"
expect "another corpus is refused in the same folder" \
  bash -c "! '$root/scripts/quickstart.sh' --no-setup --no-build --out '$out' --corpus '$out/data/kjv.txt'"

echo "$failures failed"
[[ $failures -eq 0 ]]
