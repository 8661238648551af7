#!/usr/bin/env python3
"""Mixture-of-Channels beside a dense FFN: validation perplexity after equal training, and its spread.

    scripts/bench/moc_quality.py --train FILE.h5... --out DIR [--presets NAME...] [--variants NAME...]
                                 [--seeds N...] [--steps N] [--batch ROWS] [--lr RATE] [--threads N]
                                 [--set KEY=VALUE...]

Trains each variant with each seed on the same rows in the same order and evaluates it on the whole validation
part of the files. Runs that have finished under DIR are not run again, so that it can be interrupted and
extended. Prints Markdown: the mean perplexity over the seeds with its smallest and largest, and, because runs of
one seed start from the same weights and see the same data, the ratio to the dense run of the same seed, again
with its range. CHASKI names the program (default: build/release/chaski).
"""

import argparse
import json
import math
import os
import pathlib
import shlex
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CHASKI = os.environ.get("CHASKI", str(ROOT / "build/release/chaski"))

# What of the channels is kept; a share is rounded to a count.
VARIANTS = {
    "dense": [],
    "top 50 %": ["model.moc.keep=0.5"],
    "top 25 %": ["model.moc.keep=0.25"],
    "top hidden/2": [],
    "top 12.5 %": ["model.moc.keep=0.125"],
    "top 6.25 %": ["model.moc.keep=0.0625"],
    "2:8": ["model.moc.pattern=2:8"],
    "top hidden/2 by |SiLU|": ["model.moc.selection=silu-magnitude"],
}


def settings_of(options, preset, variant, seed, directory):
    settings = [f"run.seed={seed}", f"run.output={directory}", f"run.threads={options.threads}",
                f"model.preset={preset}", f"model.vocab_size={options.vocab_size}",
                "data.train=" + json.dumps(options.train), f"data.sequence_length={options.sequence_length}",
                f"optimizer.lr={options.lr}", f"schedule.steps={options.steps}",
                f"parallel.micro_batch={options.batch}", f"parallel.global_batch={options.batch}",
                "evaluation.every=0", "evaluation.tokens=0", "checkpoint.every=0", "checkpoint.keep=1"]
    if variant != "dense":
        settings += ["model.ffn=moc", *VARIANTS[variant]]
    return settings + options.set


def train(options, preset, variant, seed):
    """The validation perplexity after the last step."""
    name = "".join(c if c.isalnum() else "-" for c in f"{preset}-{variant}-{seed}")
    directory = options.out / name
    result = directory / "quality.json"
    settings = settings_of(options, preset, variant, seed, directory)
    begun = directory / "settings.json"  # of a run that may have been interrupted
    if begun.exists() and json.loads(begun.read_text()) != settings:
        sys.exit(f"moc_quality.py: {directory} holds a run with other settings; name another --out\n"
                 f"there: {shlex.join(json.loads(begun.read_text()))}\nasked: {shlex.join(settings)}")
    if result.exists():
        return json.loads(result.read_text())
    directory.mkdir(parents=True, exist_ok=True)
    begun.write_text(json.dumps(settings))
    config = directory / "base.toml"
    config.write_text("[run]\n")
    command = [CHASKI, "train", str(config), "--resume", "auto"]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"moc_quality.py: {shlex.join(command)} failed:\n{done.stderr}")
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "validation_loss" in line]
    found = {"perplexity": math.exp(losses[-1]["validation_loss"]), "step": losses[-1]["step"]}
    if found["step"] != options.steps:
        sys.exit(f"moc_quality.py: {name} ended at step {found['step']} of {options.steps}")
    result.write_text(json.dumps(found))
    print(f"  {name}: perplexity {found['perplexity']:.3f}", file=sys.stderr, flush=True)
    return found


def spread(values, digits):
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(options, preset):
    found = {variant: [] for variant in options.variants}
    for seed in options.seeds:  # in turns, so that what there is after an interruption can be compared
        for variant in options.variants:
            found[variant].append(train(options, preset, variant, seed)["perplexity"])
    print(f"\n{preset}, vocabulary {options.vocab_size}, {options.steps} steps of {options.batch} x "
          f"{options.sequence_length} tokens, learning rate {options.lr}, seeds "
          f"{', '.join(map(str, options.seeds))}{''.join(', ' + setting for setting in options.set)}\n")
    print("| FFN | validation perplexity | to dense of the same seed |\n|---|---|---|")
    for variant, values in found.items():
        ratios = [value / dense for value, dense in zip(values, found.get("dense", []))]
        print(f"| {variant} | {spread(values, 2)} | {spread(ratios, 4) if ratios else ''} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", required=True, help="token files with validation parts")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the runs")
    parser.add_argument("--presets", nargs="+", default=["llama-9m"], help="default: llama-9m")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=[
        "dense", "top 25 %", "top hidden/2", "top 12.5 %", "2:8", "top hidden/2 by |SiLU|"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=300, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=32, help="rows of a step; default: %(default)s")
    parser.add_argument("--sequence-length", type=int, default=256, help="tokens of a row; default: %(default)s")
    parser.add_argument("--vocab-size", type=int, default=4096, help="of the tokenizer; default: %(default)s")
    parser.add_argument("--lr", type=float, default=3e-3, help="the highest learning rate; default: %(default)s")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further settings of all runs")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    options = parser.parse_args()
    options.train = [str(pathlib.Path(path).resolve()) for path in options.train]
    for preset in options.presets:
        table(options, preset)


if __name__ == "__main__":
    main()
