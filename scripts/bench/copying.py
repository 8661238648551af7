#!/usr/bin/env python3
"""How well models copy: their loss on words in random order, and on the same words when these come again.

    scripts/bench/copying.py --text FILE --tokenizer FILE.model --out DIR CHECKPOINT...

Takes words from the text at random and writes documents of one line of them, and documents of the same line four times.
Only what stands before can tell what comes next in a copy. A checkpoint's loss on the copies is what it loses on
documents of four lines less what it loses on the first line, by token. Prints Markdown. CHASKI names the program
(default: build/release/chaski).
"""

import argparse
import json
import os
import pathlib
import random
import re
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CHASKI = os.environ.get("CHASKI", str(ROOT / "build/release/chaski"))
LINES = 4
DOCUMENTS = 300
WORDS = 24


def run(*arguments):
    command = [CHASKI, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"copying.py: {shlex.join(command)} failed:\n{done.stderr}")
    return done.stdout


def token_file(options, words, lines):
    """Of DOCUMENTS documents of one random line each, so many times; the same lines whatever `lines` is."""
    choose = random.Random(5)
    documents = []
    for _ in range(DOCUMENTS):
        line = " ".join(choose.choice(words) for _ in range(WORDS)) + "."
        documents.append("\n".join([line] * lines))
    text = options.out / f"lines-{lines}.txt"
    text.write_text("\n\n".join(documents) + "\n")
    tokens = text.with_suffix(".h5")
    tokens.unlink(missing_ok=True)
    run("tokenize", text, "--tokenizer", options.tokenizer, "--out", tokens)
    return tokens


def total_loss(checkpoint, tokens):
    report = json.loads(run("eval", "--checkpoint", checkpoint, "--data", tokens, "--part", "train", "--json"))
    return report["loss"] * report["tokens"], report["tokens"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=pathlib.Path, required=True, help="where words are taken from")
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True, help="that of the checkpoints")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the token files")
    parser.add_argument("checkpoints", nargs="+", help="checkpoints or folders of runs")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    words = sorted(set(re.findall(r"\b[a-z]{4,9}\b", options.text.read_text(errors="replace"))))
    if len(words) < WORDS:
        sys.exit(f"copying.py: {options.text} has {len(words)} words of 4 to 9 letters; at least {WORDS} are needed")
    once, again = (token_file(options, words, lines) for lines in (1, LINES))
    print("| checkpoint | loss, first line | loss, copies |\n|---|---|---|")
    for checkpoint in options.checkpoints:
        first, first_tokens = total_loss(checkpoint, once)
        all_lines, all_tokens = total_loss(checkpoint, again)
        copies = (all_lines - first) / (all_tokens - first_tokens)
        print(f"| {checkpoint} | {first / first_tokens:.3f} | {copies:.3f} |", flush=True)


if __name__ == "__main__":
    main()
