#!/usr/bin/env python3
"""How `chaski bench train` scales: one table each for micro-batch, sequence length, processes, model size.

    scripts/bench/scaling.py [--threads N] [--steps N] [--rounds N] [--only TABLE] [--presets NAME...]

Prints Markdown. Every line is the median of its rounds, which take turns over the lines of a table. `share`
is the GEMM share of the same runs. In the table of sequence lengths, `attention` is attention's time for
each token and key that it sees, which should stay what it is, and `other` the time of everything else for each
token, likewise. CHASKI names the program (default: build/release/chaski), MPIRUN the launcher with its flags.
"""

import argparse
import json
import os
import pathlib
import shutil
import shlex
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CHASKI = os.environ.get("CHASKI", str(ROOT / "build/release/chaski"))
MPIRUN = shlex.split(os.environ.get("MPIRUN", "mpirun --oversubscribe --bind-to none"))
MIB = 1 << 20


def bench(arguments, processes=1, programs=1):
    """The report of `processes` that train together; of several `programs` at once that know nothing of each
    other, the first one's with the tokens/s of all: what the machine gives two processes at its best."""
    launcher = [*MPIRUN, "-n", str(processes)] if processes > 1 else []
    command = [*launcher, CHASKI, "bench", "train", "--json", *map(str, arguments)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
               for _ in range(programs)]
    printed = [program.communicate() for program in started]
    for program, (_, complaint) in zip(started, printed):
        if program.returncode:
            sys.exit(f"scaling.py: {shlex.join(command)} failed:\n{complaint}")
    reports = [json.loads(output) for output, _ in printed]
    reports[0]["tokens_per_second"] = sum(report["tokens_per_second"] for report in reports)
    return reports[0]


def median(reports, key):
    return statistics.median(report[key] for report in reports)


def in_turns(rounds, lines):
    """lines: {name: (arguments, *how many processes and programs)}. The reports of each line."""
    reports = {name: [] for name in lines}
    for _ in range(rounds):
        for name, (arguments, *how_many) in lines.items():
            reports[name].append(bench(arguments, *how_many))
            print(f"  {name}: {reports[name][-1]['tokens_per_second']:.0f} tokens/s", file=sys.stderr)
    return reports


def table(title, columns, rows):
    print(f"\n{title}\n\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def memory_of(report):
    parts = report["memory_bytes"]
    return [f"{sum(parts.values()) / MIB:.0f}", f"{parts['activations'] / MIB:.1f}",
            f"{report['peak_resident_bytes'] / MIB:.0f}"]


MEMORY = ["accounted MiB", "of these activations", "peak of the process"]


def speed_of(reports):
    return [f"{median(reports, 'tokens_per_second'):.0f}", f"{median(reports, 'gemm_share'):.2f}"]


def micro_batches(options):
    lines = {}
    for rows in (1, 2, 4, 8, 16, 32):
        for passes in (True, False):
            arguments = ["--preset", "llama-60m", "--micro-batch", rows, *options.common]
            lines[rows, passes] = (arguments + ([] if passes else ["--tokens-per-pass", 0]),)
    reports = in_turns(options.rounds, lines)
    table("llama-60m, rows of 256 tokens, by micro-batch and passes",
          ["micro-batch", "passes", "tokens/s", "share", *MEMORY],
          [[str(rows), "of 512 tokens" if passes else "one", *speed_of(runs), *memory_of(runs[0])]
           for (rows, passes), runs in reports.items()])


def sequences(options):
    lengths = (128, 256, 512, 1024, 2048, 4096)
    lines = {length: (["--preset", "llama-60m", "--micro-batch", 4096 // length, "--sequence-length", length,
                       "--profile", *options.common],) for length in lengths}
    rows = []
    for length, runs in in_turns(options.rounds, lines).items():
        tokens = 4096
        attention, rest = [], []
        for report in runs:
            parts = {part["part"]: part["seconds"] for part in report["profile"]}
            own = parts["attention forward"] + parts["attention backward"]
            attention.append(1e9 * own / (tokens * (length + 1) / 2))
            rest.append(1e6 * (sum(parts.values()) - own) / tokens)
        rows.append([str(length), str(4096 // length), *speed_of(runs), f"{statistics.median(attention):.1f} ns",
                     f"{statistics.median(rest):.0f} us", *memory_of(runs[0])])
    table("llama-60m, 4096 tokens a step, by sequence length",
          ["sequence", "rows", "tokens/s", "share", "attention", "other", *MEMORY], rows)


def processes(options):
    rows = []
    for preset in options.presets:
        lines = {}
        # As many tokens a step in all, then as many in each process; at last two programs side by side.
        for count, threads, batch, programs in ((1, 1, 8, 1), (1, 2, 8, 1), (2, 1, 4, 1), (4, 1, 2, 1), (2, 1, 8, 1),
                                                (1, 1, 8, 2)):
            lines[count, threads, batch, programs] = (
                ["--preset", preset, "--micro-batch", batch, "--threads", threads, "--steps", options.steps,
                 "--warmup-steps", 1], count, programs)
        reports = in_turns(options.rounds, lines)
        alone = reports[1, 1, 8, 1]
        for (count, threads, batch, programs), runs in reports.items():
            ratios = [run["tokens_per_second"] / one["tokens_per_second"] for run, one in zip(runs, alone)]
            wait = median(runs, "communication_wait_seconds_per_step")
            rows.append([preset, str(count) if programs == 1 else "2 apart", str(threads), str(batch),
                         *speed_of(runs), f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                         f"{1e3 * wait:.0f} ms", f"{runs[0]['peak_resident_bytes'] / MIB:.0f}"])
    table("Processes; rows of 256 tokens",
          ["model", "processes", "threads each", "rows each", "tokens/s", "share", "of 1 x 1 in the same round",
           "wait a step", "peak of rank 0, MiB"], rows)


def models(options):
    presets = ("llama-9m", "llama-20m", "llama-60m", "llama-130m", "llama-350m")
    lines = {preset: (["--preset", preset, *options.common],) for preset in presets}
    table("8 x 256 tokens a step, by model", ["model", "parameters", "tokens/s", "share", *MEMORY],
          [[preset, f"{runs[0]['parameters'] / 1e6:.1f} M", *speed_of(runs), *memory_of(runs[0])]
           for preset, runs in in_turns(options.rounds, lines).items()])


TABLES = {"micro-batch": micro_batches, "sequence": sequences, "processes": processes, "models": models}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of a single process")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of a run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--presets", nargs="+", default=["llama-9m", "llama-60m"], help="of the processes' table")
    parser.add_argument("--only", choices=TABLES, help="one of the tables")
    options = parser.parse_args()
    if shutil.which(CHASKI) is None:
        sys.exit(f"scaling.py: there is no program {CHASKI}: build it, or name another by CHASKI")
    options.common = ["--threads", options.threads, "--steps", options.steps, "--warmup-steps", 1]
    for name, make in TABLES.items():
        if options.only in (None, name):
            make(options)


if __name__ == "__main__":
    main()
