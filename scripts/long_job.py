#!/usr/bin/env python3
"""A long training of a tiny model that is stopped and killed all the time, beside one that is left alone.

    scripts/long_job.py                       20 000 steps, one process
    scripts/long_job.py --processes 2         under mpirun
    scripts/long_job.py --steps 400 --interval 120 --checkpoint 20

Every few hundred steps the disturbed run gets SIGKILL (all processes at once) or is asked to stop
(SIGTERM; under mpirun SIGUSR1), and goes on with --resume auto; now and then its metrics file is rotated
away under it. In the end both runs must have the same losses and the same weights bit by bit; memory must
not have grown and no file descriptor leaked; and nothing but what the README names may lie in the output
directories. Exit code 0: so it was.

CHASKI names the program (default: build/release/chaski), MPIRUN the launcher with its flags.
"""

import argparse
import json
import os
import pathlib
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ.setdefault("CHASKI", str(ROOT / "build/release/chaski"))
sys.path.insert(0, str(ROOT / "tests/training"))
from harness import CHASKI, CONFIG, MPIRUN, Workplace, descendants, kill_all, launch_environment, run  # noqa: E402

# What the README says that a run leaves.
KNOWN_FILES = re.compile(r"config\.toml|metrics\.jsonl(\.\d+)?|checkpoints/latest|"
                         r"checkpoints/step-\d{8}/(COMPLETE|shard-\d{5}-of-\d{5}\.h5)")
CHECKPOINTS_KEPT = 2


class Usage:
    """Memory and open files of a run's processes over time."""

    def __init__(self):
        self.samples = []  # (step, bytes, descriptors), summed over the processes

    def sample(self, process, step):
        pids = [pid for pid in [process.pid, *descendants(process.pid)] if self.is_chaski(pid)]
        try:
            resident = sum(self.resident(pid) for pid in pids)
            descriptors = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return
        if pids:
            self.samples.append((step, resident, descriptors))

    @staticmethod
    def is_chaski(pid):
        try:
            return os.path.realpath(f"/proc/{pid}/exe") == os.path.realpath(CHASKI)
        except OSError:
            return False

    @staticmethod
    def resident(pid):
        text = pathlib.Path(f"/proc/{pid}/statm").read_text()
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def growth(self, steps):
        """Bytes and descriptors gained between the second and the last quarter of the steps."""
        early = [row for row in self.samples if steps / 4 < row[0] <= steps / 2]
        late = [row for row in self.samples if row[0] > steps * 3 / 4]
        if not early or not late:
            return None
        # A save opens files and is over soon: the least of many samples has none in it.
        return (statistics.median(row[1] for row in late) - statistics.median(row[1] for row in early),
                min(row[2] for row in late) - min(row[2] for row in early),
                statistics.median(row[1] for row in late))


class Job:
    def __init__(self, options, workplace, name):
        self.options = options
        self.output = workplace.path / name
        self.config = workplace.path / f"{name}.toml"
        self.config.write_text(CONFIG.format(output=self.output, data=workplace.data))
        self.usage = Usage()
        self.rotations = 0

    def start(self):
        launcher = [*MPIRUN, "-n", str(self.options.processes)] if self.options.processes > 1 else []
        settings = [f"schedule.steps={self.options.steps}", f"checkpoint.every={self.options.checkpoint}",
                    f"checkpoint.keep={CHECKPOINTS_KEPT}", "evaluation.every=500", "log.every=1000"]
        command = [*launcher, CHASKI, "train", str(self.config), "--resume", "auto"]
        command += [part for setting in settings for part in ("--set", setting)]
        self.log = open(f"{self.output}.log", "a")
        return subprocess.Popen(command, env=launch_environment(), stdout=self.log, stderr=self.log,
                                start_new_session=True)

    def last_step(self):
        """The step of the last whole line of the metrics; 0 when there is none (yet)."""
        try:
            with open(self.output / "metrics.jsonl", "rb") as file:
                file.seek(max(0, os.path.getsize(file.name) - 2000))
                lines = file.read().split(b"\n")[:-1]
            return json.loads(lines[-1])["step"]
        except (FileNotFoundError, IndexError, ValueError, KeyError):
            return 0

    def follow(self, process, until=None, hurry=0.05):
        """Watches a run until it has done a step, or ends. Returns its exit code; None: it still runs."""
        while process.poll() is None:
            step = self.last_step()
            self.usage.sample(process, step)
            if until is not None and step >= until:
                return None
            time.sleep(hurry)
        return process.returncode

    def rotate(self):
        self.rotations += 1
        os.rename(self.output / "metrics.jsonl", self.output / f"metrics.jsonl.{self.rotations}")

    def rows(self):
        """The metrics by step, rotated files first; a step that was done again counts as done last."""
        by_step, repeated = {}, 0
        files = [self.output / f"metrics.jsonl.{i + 1}" for i in range(self.rotations)]
        for path in [*files, self.output / "metrics.jsonl"]:
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue  # cut off by a kill; a rotated file is not mended
                known = by_step.get(row["step"])
                repeated += known is not None
                if known is not None and known["loss"] != row["loss"]:
                    raise AssertionError(f"step {row['step']}, done again, has another loss")
                by_step[row["step"]] = row
        return [by_step[step] for step in sorted(by_step)], repeated

    def weights(self):
        shown = run([CHASKI, "inspect", self.output, "--json"])
        return {tensor["name"]: tensor["checksum"] for tensor in json.loads(shown.stdout)["tensors"]}

    def strays(self):
        files = [str(path.relative_to(self.output)) for path in self.output.rglob("*") if path.is_file()]
        return sorted(name for name in files if not KNOWN_FILES.fullmatch(name))


def run_undisturbed(job):
    start = time.monotonic()
    code = job.follow(job.start())
    if code != 0:
        raise AssertionError(f"the undisturbed run ended with {code}; see {job.output}.log")
    return time.monotonic() - start


def disturb(job, process, generator):
    """One interruption; returns its name."""
    if generator.random() < 0.3 and job.last_step() > 0:
        job.rotate()
    if generator.random() < 0.65:
        time.sleep(generator.uniform(0.0, 0.02))
        kill_all(process)
        return "SIGKILL"
    wanted = signal.SIGUSR1 if job.options.processes > 1 else signal.SIGTERM
    process.send_signal(wanted)
    process.wait(timeout=120)
    if process.returncode != 0 and job.last_step() >= job.options.steps:
        return "too late"  # the run was over, and its launcher about to go
    if process.returncode != 0:
        raise AssertionError(f"{wanted.name}: exit code {process.returncode}; see {job.output}.log")
    return wanted.name


def run_disturbed(job, generator):
    start = time.monotonic()
    interruptions = {}
    while True:
        until = job.last_step() + generator.randint(job.options.interval // 2, job.options.interval * 3 // 2)
        if until > job.options.steps - job.options.interval // 4:
            until = None  # an end by itself: a signal would meet a launcher that is going, too
        process = job.start()
        code = job.follow(process, until, hurry=0.01)
        if code is not None:
            if code != 0:
                raise AssertionError(f"the disturbed run ended with {code}; see {job.output}.log")
            return time.monotonic() - start, interruptions
        name = disturb(job, process, generator)
        interruptions[name] = interruptions.get(name, 0) + 1


def compare(steady, disturbed, options):
    """What is wrong, in lines."""
    faults = []
    expected, _ = steady.rows()
    rows, repeated = disturbed.rows()
    print(f"steps done again after a kill, with the same losses: {repeated}")
    for name, found in (("undisturbed", expected), ("disturbed", rows)):
        if [row["step"] for row in found] != list(range(1, options.steps + 1)):
            faults.append(f"the {name} run's metrics lack steps: {len(found)} of {options.steps}")
    for key in ("loss", "grad_norm", "validation_loss"):
        different = [row["step"] for row, other in zip(rows, expected) if row.get(key) != other.get(key)]
        if different:
            faults.append(f"{key} differs in {len(different)} steps, first in step {different[0]}")
    if disturbed.weights() != steady.weights():
        faults.append("the final weights or optimizer states differ")
    for job in (steady, disturbed):
        if job.strays():
            faults.append(f"{job.output} holds {', '.join(job.strays())}")
        checkpoints = len(list((job.output / "checkpoints").glob("step-*")))
        if checkpoints != CHECKPOINTS_KEPT:
            faults.append(f"{job.output} holds {checkpoints} checkpoints instead of {CHECKPOINTS_KEPT}")
    return faults


def check_usage(job, options):
    growth = job.usage.growth(options.steps)
    if growth is None:
        print("memory: the run was too short to say")
        return []
    gained, descriptors, level = growth
    print(f"memory of all processes: {level / 2**20:.1f} MiB, {gained / 2**10:+.0f} KiB from the second to the "
          f"last quarter; descriptors {descriptors:+d} ({len(job.usage.samples)} samples)")
    faults = []
    if gained > 0.01 * level + 2**20:
        faults.append(f"memory grew by {gained / 2**20:.1f} MiB")
    if descriptors > 0:
        faults.append(f"{descriptors} file descriptors leaked")
    return faults


def whole_number(least):
    """For arguments: what is not such a number is refused in a line."""
    def parse(text):
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, not '{text}'")
        return int(text)
    return parse


def checked_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=whole_number(1), default=20000)
    parser.add_argument("--processes", type=whole_number(1), default=1)
    parser.add_argument("--interval", type=whole_number(2), default=400,
                        help="mean number of steps between interruptions")
    parser.add_argument("--checkpoint", type=whole_number(1), default=100, help="steps between checkpoints")
    parser.add_argument("--seed", type=whole_number(0), default=1, help="of the interruptions")
    options = parser.parse_args()
    batch, rows = 8, 2  # of the harness's config
    if batch % (options.processes * rows) != 0:
        parser.error(f"argument --processes: {options.processes} do not share {batch} rows in micro-batches of "
                     f"{rows}: take 1, 2 or 4")
    if options.steps < CHECKPOINTS_KEPT * options.checkpoint:
        parser.error(f"argument --steps: {options.steps} are too few for {CHECKPOINTS_KEPT} checkpoints, one every "
                     f"{options.checkpoint} steps")
    programs = [("CHASKI", CHASKI, "build it")]
    if options.processes > 1:
        programs.append(("MPIRUN", MPIRUN[0], "install an MPI (scripts/setup.sh)"))
    for variable, program, remedy in programs:
        if shutil.which(program) is None:
            parser.error(f"there is no program {program}: {remedy}, or name another by {variable}")
    return options


def main():
    options = checked_arguments()

    workplace = Workplace()
    steady, disturbed = Job(options, workplace, "steady"), Job(options, workplace, "disturbed")
    try:
        seconds = run_undisturbed(steady)
        print(f"undisturbed: {options.steps} steps, {options.processes} processes, {seconds:.0f} s", flush=True)
        seconds, interruptions = run_disturbed(disturbed, random.Random(options.seed))
        print(f"disturbed: {seconds:.0f} s, interruptions {interruptions}, rotations {disturbed.rotations}")
        faults = check_usage(steady, options) + compare(steady, disturbed, options)
        if not set(interruptions) - {"too late"}:
            faults.append("the run was over before it was disturbed: take a smaller --interval")
    except AssertionError as error:
        faults = [str(error)]
    if faults:
        print("\n".join(f"FAILED: {fault}" for fault in faults))
        print(f"everything is kept in {workplace.path}")
        return 1
    shutil.rmtree(workplace.path)
    print("losses, validation losses and weights are the same bit by bit; nothing was left behind")
    return 0


if __name__ == "__main__":
    sys.exit(main())
