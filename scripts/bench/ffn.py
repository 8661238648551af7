#!/usr/bin/env python3
"""What a feed-forward network costs to train: memory and speed of dense and Mixture-of-Channels, beside each other.

    scripts/bench/ffn.py [--presets NAME...] [--vocab-size N] [--micro-batch N] [--sequence-length N]
                         [--tokens-per-pass N] [--threads N] [--steps N] [--rounds N]

Runs `chaski bench train` for each network and each choice of what is recomputed, in turns, and prints Markdown.
`time` is the median over the rounds of a step's time over that of the dense network that recomputes elementwise in
the same round, with the smallest and largest. `kept` is what the FFNs keep of a token and layer by the method's
count, `saved` the accounted memory less than the dense network's that keeps all, beside what the count says.
CHASKI names the program (default: build/release/chaski).
"""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CHASKI = os.environ.get("CHASKI", str(ROOT / "build/release/chaski"))
MIB = 1 << 20
NETWORKS = {
    "dense": [],
    "MoC": ["--ffn", "moc"],
    "MoC 2:8": ["--ffn", "moc", "--moc-pattern", "2:8"],
}
REFERENCE = ("dense", "elementwise")


def bench(options, preset, network, recompute):
    command = [CHASKI, "bench", "train", "--json", "--preset", preset, "--vocab-size", options.vocab_size,
               "--micro-batch", options.micro_batch, "--sequence-length", options.sequence_length,
               "--tokens-per-pass", options.tokens_per_pass, "--threads", options.threads, "--steps", options.steps,
               "--recompute", recompute, *NETWORKS[network]]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"ffn.py: {shlex.join(map(str, command))} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def kept_bytes(report, shape):
    """Of a token and layer: fp32 values; of MoC's kept channels also a bitmap or two bytes each."""
    channels = shape["intermediate_size"]
    tensors = {"none": 4, "elementwise": 2, "block": 0}[report["recompute"]]
    if report["ffn"] == "swiglu" or tensors == 0:
        return 4 * tensors * channels
    keep = report["moc_keep"]
    return 4 * tensors * keep + min(2 * keep, -(-channels // 8))


def table(options, preset):
    ways = [(network, recompute) for network in NETWORKS for recompute in ("none", "elementwise", "block")]
    reports = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way in ways:
            reports[way].append(bench(options, preset, *way))
            print(f"  {preset} {' '.join(way)}: {reports[way][-1]['tokens_per_second']:.0f} tokens/s",
                  file=sys.stderr, flush=True)
    shape = {"intermediate_size": SHAPES[preset][0]}
    rows_of_pass = options.micro_batch
    if options.tokens_per_pass:
        rows_of_pass = min(rows_of_pass, max(1, options.tokens_per_pass // options.sequence_length))
    kept_tokens = rows_of_pass * options.sequence_length * SHAPES[preset][1]
    first = reports["dense", "none"][0]
    print(f"\n{preset}, vocabulary {options.vocab_size}, {options.micro_batch} x {options.sequence_length} tokens, "
          f"{rows_of_pass} rows a pass, {first['threads_per_process']} threads, {first['instruction_set']}\n")
    print("| FFN | recompute | tokens/s | time | kept, bytes | activations, MiB | accounted, MiB | saved, MiB "
          "(by count) |\n|---|---|---|---|---|---|---|---|")
    total = lambda report: sum(report["memory_bytes"].values())
    for way in ways:
        ratios = [reference["tokens_per_second"] / report["tokens_per_second"]
                  for report, reference in zip(reports[way], reports[REFERENCE])]
        report = reports[way][0]
        kept = kept_bytes(report, shape)
        saved = (total(first) - total(report)) / MIB
        counted = (kept_bytes(first, shape) - kept) * kept_tokens / MIB
        by_count = "" if way[1] == "block" else f" ({counted:.1f})"
        rate = statistics.median(report["tokens_per_second"] for report in reports[way])
        print(f"| {way[0]} | {way[1]} | {rate:.0f} | {statistics.median(ratios):.3f} ({min(ratios):.3f} to "
              f"{max(ratios):.3f}) | {kept} | {report['memory_bytes']['activations'] / MIB:.1f} | "
              f"{total(report) / MIB:.1f} | {saved:.1f}{by_count} |")


# intermediate_size and num_layers.
SHAPES = {"llama-9m": (352, 4), "llama-20m": (688, 4), "llama-60m": (1376, 8), "llama-130m": (2048, 12),
          "llama-350m": (2736, 24)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["llama-60m"], choices=SHAPES)
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--tokens-per-pass", type=int, default=512)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for preset in options.presets:
        table(options, preset)


if __name__ == "__main__":
    main()
