#!/usr/bin/env python3
"""How far the losses of one run are from those of another one, step by step and smoothed.

    scripts/bench/loss_curves.py RUN REFERENCE [--window 20] [--at-most PERCENT]

RUN and REFERENCE are output folders of `chaski train`; the steps that both have logged are compared.
Differences are relative to the reference's loss; the exit status is 1 where the means differ by more than
PERCENT anywhere.
"""

import argparse
import json
import pathlib
import sys


def losses(directory):
    path = pathlib.Path(directory) / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        sys.exit(f"loss_curves.py: {path}: {error}")
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def smoothed(values, window):
    return [sum(values[i:i + window]) / window for i in range(len(values) - window + 1)]


def largest_difference(ours, theirs):
    return max(abs(a - b) / b for a, b in zip(ours, theirs))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("reference")
    parser.add_argument("--window", type=int, default=20, help="steps whose mean is compared (default: 20)")
    parser.add_argument("--at-most", type=float, metavar="PERCENT", help="allowed difference of the means")
    arguments = parser.parse_args()
    run, reference = losses(arguments.run), losses(arguments.reference)
    steps = sorted(run.keys() & reference.keys())
    if not 1 <= arguments.window <= len(steps):
        sys.exit(f"loss_curves.py: --window {arguments.window}: must be 1 to {len(steps)}, the steps that both have")
    ours, theirs = ([of[step] for step in steps] for of in (run, reference))
    print(f"{len(steps)} steps, {steps[0]} to {steps[-1]}")
    print(f"largest difference of a step: {100 * largest_difference(ours, theirs):.2f} %")
    ours, theirs = smoothed(ours, arguments.window), smoothed(theirs, arguments.window)
    difference = 100 * largest_difference(ours, theirs)
    print(f"of means of {arguments.window} steps: {difference:.2f} %")
    print(f"mean of the last {arguments.window} steps: {ours[-1]:.4f}, reference {theirs[-1]:.4f}")
    if arguments.at_most is not None and not difference <= arguments.at_most:
        sys.exit(f"loss_curves.py: the means differ by more than {arguments.at_most:g} %")


if __name__ == "__main__":
    main()
