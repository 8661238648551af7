#!/usr/bin/env python3
"""Each part of a training step beside the least time that it can take: a Markdown table.

    scripts/bench/floors.py [--preset llama-60m] [--micro-batch 8] [--sequence-length 256] [--threads N]

Times are those of `chaski bench train --profile`, ceilings those of `chaski bench ops`, both measured here. The
floor of a part is its counted FLOPs over the GEMM ceiling, or its counted bytes over the memory's
bandwidth (read, write, or the better of copy and triad, as the part reads and writes): docs/performance.md
says what is counted. A part below its floor has operands that stay in a cache. CHASKI names the program
(default: build/release/chaski).
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CHASKI = os.environ.get("CHASKI", str(ROOT / "build/release/chaski"))
# hidden, intermediate, layers of model/llama_config.cpp; vocabulary 32000, heads of equal width, untied.
SHAPES = {"llama-9m": (128, 352, 4), "llama-20m": (256, 688, 4), "llama-60m": (512, 1376, 8),
          "llama-130m": (768, 2048, 12), "llama-350m": (1024, 2736, 24)}
VOCAB_SIZE = 32000


def bench(*arguments):
    done = subprocess.run([CHASKI, "bench", *map(str, arguments), "--json"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"floors.py: {done.stderr}")
    return json.loads(done.stdout)


def counted(preset, tokens, sequence, parameters):
    """{part: (amount, unit)}, of a step."""
    hidden, intermediate, layers = SHAPES[preset]
    norms = 2 * layers + 1
    pairs = tokens * (sequence + 1) / 2 * hidden * layers
    floats = lambda elements: 4 * elements
    return {
        "attention forward": (4 * pairs, "FLOP"),
        "attention backward": (8 * pairs, "FLOP"),
        "rotary": (floats(2 * layers * 2 * tokens * 2 * hidden), "mixed"),
        "norms forward": (floats(norms * 4 * tokens * hidden), "mixed"),
        # The normed inputs of the two products of a block are computed again.
        "norms backward": (floats((norms * 4 + 2 * layers * 2) * tokens * hidden), "mixed"),
        "SwiGLU forward": (floats(layers * 3 * tokens * intermediate), "mixed"),
        "SwiGLU backward": (floats(layers * 6 * tokens * intermediate), "mixed"),
        "cross-entropy": (floats(2 * tokens * VOCAB_SIZE), "mixed"),
        "embedding": (floats(5 * tokens * hidden), "mixed"),
        "optimizer": (floats(7 * parameters), "mixed"),
        "zeroing": (floats(parameters), "write"),
        "gradient norm": (floats(parameters), "read"),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=SHAPES, default="llama-60m")
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if shutil.which(CHASKI) is None:
        sys.exit(f"floors.py: there is no program {CHASKI}: build it, or name another by CHASKI")
    size = ["--preset", options.preset, "--micro-batch", options.micro_batch, "--sequence-length",
            options.sequence_length, "--threads", options.threads]
    step = bench("train", *size, "--profile")
    memory = bench("ops", *size)["memory_gb_per_second"]
    memory["mixed"] = max(memory["copy"], memory["triad"])
    work = counted(options.preset, options.micro_batch * options.sequence_length, options.sequence_length,
                   step["parameters"])
    gemm = step["gemm_ceiling_gflops"]
    total = sum(part["seconds"] for part in step["profile"])
    print(f"{options.preset}, {options.micro_batch} x {options.sequence_length} tokens, {options.threads} threads: "
          f"{step['tokens_per_second']:.0f} tokens/s, GEMM share {step['gemm_share']:.3f}; ceilings {gemm:.0f} GFLOP/s, "
          f"memory {memory['read']:.0f} read, {memory['write']:.0f} write, {memory['mixed']:.0f} mixed GB/s\n")
    print("| part | ms | of the step | counted | floor, ms | floor / time |\n|---|---|---|---|---|---|")
    least = 0.0
    for part in step["profile"]:
        name, seconds = part["part"], part["seconds"]
        if "gflops" in part:
            amount = part["gflops"] * seconds
            text, floor = f"{amount:.1f} GFLOP", amount / gemm
        elif name in work:
            amount, unit = work[name]
            text = f"{1e-9 * amount:.2f} " + ("GFLOP" if unit == "FLOP" else "GB")
            floor = 1e-9 * amount / (gemm if unit == "FLOP" else memory[unit])
        else:
            text, floor = "", 0.0
        least += floor
        ratio = f"{floor / seconds:.2f}" if floor else ""
        print(f"| {name} | {1e3 * seconds:.2f} | {100 * seconds / total:.1f} % | {text} | "
              f"{1e3 * floor:.2f} | {ratio} |")
    print(f"| **step** | **{1e3 * total:.0f}** | | | **{1e3 * least:.0f}** | **{least / total:.2f}** |")


if __name__ == "__main__":
    main()
