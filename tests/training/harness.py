"""Runs `chaski` on a small corpus and compares what it wrote. Standard library only.

Every test gets a directory of its own; the tokenizer and the token file are made once a process.
CHASKI names the program, MPIRUN the launcher with its flags.
"""

import atexit
import json
import os
import pathlib
import random
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

CHASKI = os.environ["CHASKI"]
MPIRUN = shlex.split(os.environ.get("MPIRUN", "mpirun --oversubscribe --bind-to none"))
ENVIRONMENT = dict(
    os.environ,
    OMP_NUM_THREADS="1",
    OMPI_ALLOW_RUN_AS_ROOT="1",
    OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
)

LAUNCHES = tempfile.mkdtemp(prefix="chaski-mpi-")
atexit.register(shutil.rmtree, LAUNCHES, ignore_errors=True)


def launch_environment():
    """A folder for each launch's temporary files: an mpirun that ends, or was killed, removes the one that
    it shares with another which is just starting."""
    return dict(ENVIRONMENT, TMPDIR=tempfile.mkdtemp(dir=LAUNCHES))


CONFIG = """
[run]
output = "{output}"
seed = 11
[model]
hidden_size = 32
intermediate_size = 88
num_layers = 2
num_heads = 4
num_kv_heads = 2
vocab_size = 400
max_position_embeddings = 64
[data]
train = "{data}"
sequence_length = 32
[optimizer]
lr = 3e-3
[schedule]
steps = 100
warmup_steps = 10
[parallel]
micro_batch = 2
global_batch = 8
[evaluation]
every = 0
[checkpoint]
every = 0
[log]
every = 50
"""


def words(count, seed=5):
    """Text with some structure: a seeded chain of made-up words, in lines and paragraphs."""
    generator = random.Random(seed)
    vocabulary = ["".join(generator.choices("abcdefghilmnoprstu", k=generator.randint(2, 7))) for _ in range(150)]
    text, word = [], 0
    for i in range(count):
        word = (word * 7 + generator.randint(0, 5)) % len(vocabulary)
        text.append(vocabulary[word] + ("\n\n" if i % 60 == 59 else "\n" if i % 12 == 11 else " "))
    return "".join(text)


class Workplace:
    """Token files that several tests read."""

    def __init__(self, num_words=12000):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="chaski-test-"))
        (self.path / "text.txt").write_text(words(num_words))
        run([CHASKI, "tokenizer", "text.txt", "--vocab-size", "400", "--out", "t.model"], cwd=self.path)
        run([CHASKI, "tokenize", "text.txt", "--tokenizer", "t.model", "--out", "t.h5",
             "--split", "validation=0.05"], cwd=self.path)

    @property
    def data(self):
        return self.path / "t.h5"


def run(command, check=True, **options):
    done = subprocess.run([str(part) for part in command], env=launch_environment(), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300, **options)
    if check and done.returncode != 0:
        raise AssertionError(f"{shlex.join(map(str, command))} exited with {done.returncode}:\n"
                             f"{done.stdout}\n{done.stderr}")
    return done


class TrainingCase(unittest.TestCase):
    WORDS = 12000

    @classmethod
    def setUpClass(cls):
        cls.workplace = Workplace(cls.WORDS)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.workplace.path)

    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="case-", dir=self.workplace.path))

    def command(self, name, *arguments, processes=0, settings=(), program=CHASKI):
        """`chaski train` into directory/name; without mpirun where processes is 0."""
        config = self.directory / f"{name}.toml"
        config.write_text(CONFIG.format(output=self.directory / name, data=self.workplace.data))
        launcher = [*MPIRUN, "-n", processes] if processes else []
        sets = [part for setting in settings for part in ("--set", setting)]
        return [str(part) for part in [*launcher, program, "train", config, *sets, *arguments]]

    def train(self, name, *arguments, check=True, **options):
        return run(self.command(name, *arguments, **options), check=check)

    def start(self, *arguments, **options):
        return subprocess.Popen(self.command(*arguments, **options), env=launch_environment(), text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)

    def metrics(self, name):
        path = self.directory / name / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def losses(self, name):
        return [row["loss"] for row in self.metrics(name)]

    def weights(self, name, step=None):
        """Every tensor of a checkpoint, the newest by default, with its checksum; optimizer state included."""
        path = self.directory / name
        if step is not None:
            path = path / "checkpoints" / f"step-{step:08d}"
        shown = run([CHASKI, "inspect", path, "--json"])
        return {tensor["name"]: tensor["checksum"] for tensor in json.loads(shown.stdout)["tensors"]}

    def wait_for_step(self, process, name, step):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            rows = self.metrics_so_far(name)
            if rows and rows[-1]["step"] >= step:
                return
            if process.poll() is not None:
                self.fail(f"the run ended early: {process.communicate()}")
            time.sleep(0.005)
        process.kill()
        self.fail(f"step {step} was not reached")

    def metrics_so_far(self, name):
        path = self.directory / name / "metrics.jsonl"
        if not path.exists():
            return []
        whole_lines = path.read_text().split("\n")[:-1]
        return [json.loads(line) for line in whole_lines]

    def assert_one_error(self, done, code, *parts):
        """One error line for the whole job that names `parts`, with a hint, and the exit code."""
        errors = [line for line in done.stderr.splitlines() if "chaski: error:" in line]
        self.assertEqual(len(errors), 1, done.stderr)
        for part in parts:
            self.assertIn(str(part), errors[0])
        self.assertEqual(done.returncode, code, done.stderr)


def descendants(pid):
    """Of a process, by /proc; mpirun gives its processes groups of their own."""
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread has ended meanwhile
        for child in children:
            found += [int(child), *descendants(int(child))]
    return found


def kill_all(process):
    """SIGKILL for every rank at the same time, then for the launcher."""
    victims = [*descendants(process.pid), process.pid]
    for victim in victims:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.communicate()
    while any(pathlib.Path(f"/proc/{victim}").exists() for victim in victims):
        time.sleep(0.01)
