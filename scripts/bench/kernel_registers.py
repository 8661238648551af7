#!/usr/bin/env python3
"""What the compiler gives each GPU kernel: registers, and what it spills to memory for want of them.

  scripts/bench/kernel_registers.py [--architectures 80 86 89 90 100] [--files NAME.cu...] [--all] [--json FILE]

Compiles the device code of kernels/*.cu, as the build does, for one architecture after the other
(needs nvcc, no GPU) and prints a table. Exit status 1: a kernel spills.
"""

import argparse
import collections
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The build's (CMakeLists.txt), without what only concerns the host.
FLAGS = ["-O3", "-DNDEBUG", "-std=c++20", "-cubin", "-Xptxas", "-v", f"-I{ROOT}"]

ENTRY = re.compile(r"Compiling entry function '(\S+)' for 'sm_\d+a?'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?, (\d+) bytes smem)?")

Kernel = collections.namedtuple("Kernel", "file name registers shared stack stores loads")


def find_nvcc():
    found = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if found is None:
        sys.exit("kernel_registers: error: there is no nvcc\nhint: put it on the PATH")
    return found


def demangled(names):
    filter_ = shutil.which("cu++filt") or shutil.which("c++filt")
    if filter_ is None or not names:
        return names
    shown = subprocess.run([filter_], input="\n".join(names), capture_output=True, text=True, check=True)
    return shown.stdout.splitlines()


def short(name):
    """The kernel and its template arguments, without namespaces and parameters."""
    name = re.sub(r"\(anonymous namespace\)::|<unnamed>::|chaski::|cuda::|^void ", "", name)
    depth = 0
    for at, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            return name[:at]
    return name


def parse(text, file):
    kernels, name, spills = [], None, None
    for line in text.splitlines():
        if match := ENTRY.search(line):
            name, spills = match[1], (0, 0, 0)
        elif name is None:
            continue
        elif match := SPILLS.search(line):
            spills = tuple(map(int, match.groups()))
        elif match := USED.search(line):
            kernels.append(Kernel(file, name, int(match[1]), int(match[2] or 0), *spills))
            name = None
    names = demangled([kernel.name for kernel in kernels])
    return [kernel._replace(name=short(shown)) for kernel, shown in zip(kernels, names)]


def compile_for(nvcc, architecture, source):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as out:
        done = subprocess.run([nvcc, *FLAGS, f"-arch=sm_{architecture}", "-o", out.name, str(source)],
                              capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"kernel_registers: error: {source.name} does not compile for {architecture}\n{done.stderr}")
    kernels = parse(done.stdout + done.stderr, source.name)
    if not kernels:
        sys.exit(f"kernel_registers: error: nvcc says nothing of the kernels of {source.name}")
    return kernels


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", default=["80", "86", "89", "90", "100"], metavar="N")
    parser.add_argument("--files", nargs="+", metavar="NAME.cu", help="of kernels/; default: all")
    parser.add_argument("--all", action="store_true", help="print every kernel, too")
    parser.add_argument("--json", metavar="FILE", help="write every kernel there")
    options = parser.parse_args()
    nvcc = find_nvcc()
    sources = sorted((ROOT / "kernels").glob("*.cu"))
    if options.files:
        sources = [source for source in sources if source.name in options.files]
        if len(sources) != len(set(options.files)):
            parser.error("--files names what is not in kernels/")
    everything, found_spills = {}, False
    print("| architecture | kernels | most registers | in | stack | spilled kernels |")
    print("|---|---|---|---|---|---|", flush=True)
    for architecture in options.architectures:
        kernels = [kernel for source in sources for kernel in compile_for(nvcc, architecture, source)]
        everything[architecture] = [kernel._asdict() for kernel in kernels]
        most = max(kernels, key=lambda kernel: kernel.registers)
        spilled = [kernel for kernel in kernels if kernel.stores or kernel.loads]
        stacks = [kernel for kernel in kernels if kernel.stack]
        found_spills = found_spills or bool(spilled)
        print(f"| {architecture} | {len(kernels)} | {most.registers} | `{most.name}` | "
              f"{max((kernel.stack for kernel in stacks), default=0)} | "
              f"{', '.join(f'`{k.name}` ({k.stores} stored, {k.loads} loaded)' for k in spilled) or 'none'} |",
              flush=True)
        for kernel in sorted(kernels, key=lambda kernel: -kernel.registers) if options.all else []:
            print(f"    {kernel.registers:4d} registers {kernel.stack:5d} stack {kernel.stores:5d} stored "
                  f"{kernel.loads:5d} loaded {kernel.shared:6d} shared  {kernel.file}: {kernel.name}")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(everything, indent=1) + "\n")
    return 1 if found_spills else 0


if __name__ == "__main__":
    sys.exit(main())
