"""A process of a run is killed, at moments drawn by lot and at chosen ones: whoever lives notices it soon, has the
state of the last commit, and says so; resumed, the run comes to the same end.

KILLS: how many launches with each way of drawing a victim by lot (default 5, a minute in all); SEED: another lot.
"""

import json
import os
import random
import re
import signal
import subprocess
import time
import unittest
from pathlib import Path

from harness import CHASKI, TrainingCase, descendants, kill_all, launch_environment

DRILL = os.environ["DRILL"]
KILLS = int(os.environ.get("KILLS", "5"))
SEED = int(os.environ.get("SEED", "1"))
PROCESSES = 4  # two replicas of two stages: ranks 0 and 1 host the first stage, 2 and 3 the second
STEPS = 40
EVERY = 2      # steps, checkpoints
# The sums of the step, its vote, the comparison of the replicas, the evaluation, two of the channels' statistics.
COLLECTIVES_OF_A_STEP = 6
REPORTER = 0
# From the death of a process to the others' knowing it. They need milliseconds, on a busy machine more.
NOTICED_WITHIN = 8.0
ENDED_WITHIN = 30.0
SETTINGS = [
    'model.ffn="moc"', "parallel.data=2", "parallel.pipeline=2", f"schedule.steps={STEPS}",
    "evaluation.every=1", "evaluation.tokens=500", f"checkpoint.every={EVERY}", "checkpoint.keep=0",
    "run.check_replicas=1", "run.threads=1", "log.every=1",
]

STUCK_REPORT = os.environ.get("STUCK_REPORT", "")
needs_stuck_report = unittest.skipUnless(STUCK_REPORT, "the library that holds a shard's report was not built")
# The second stage's writer (rank 2) says that its shard is written, but is not heard.
STUCK = [f"LD_PRELOAD={STUCK_REPORT}", "STUCK_REPORT=shard-00001-of-00002.h5.json"]


class Run:
    """A launch under mpirun, of which single processes are killed."""

    def __init__(self, command, program, environment=()):
        launcher = command.index("-n")
        command[launcher:launcher] = ["--with-ft", "ulfm"]
        program = command.index(str(program))
        command[program:program] = ["env", *environment]
        self.started = subprocess.Popen(command, env=launch_environment(), text=True, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, start_new_session=True)

    def end(self, limit):
        """What it printed; None where it did not end in time and was killed."""
        try:
            return self.started.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            kill_all(self.started)
            return None


def rows_of(path):
    """The whole lines of a file that is being written."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def process_of(mpirun, rank):
    """Of a launch, by what mpirun tells its processes."""
    for pid in descendants(mpirun):
        told = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if f"OMPI_COMM_WORLD_RANK={rank}".encode() in told:
            return pid
    raise AssertionError(f"no process of rank {rank}")


class KilledProcess(TrainingCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        undisturbed = cls("setUp")
        undisturbed.setUp()
        run = undisturbed.launch("undisturbed")
        out, err = run.end(120)
        cls.states = [undisturbed.states_of(rank) for rank in range(PROCESSES)]
        cls.undisturbed = undisturbed.directory / "undisturbed"
        cls.rows = {row["step"]: row for row in undisturbed.metrics("undisturbed")}
        if any(len(states) != STEPS for states in cls.states):
            raise AssertionError(f"the undisturbed run did not end: {out}{err}")

    def launch(self, name, settings=(), environment=()):
        self.witnesses = self.directory / f"{name}-witnesses"
        self.witnesses.mkdir()
        return Run(self.command(name, self.witnesses, processes=PROCESSES, settings=[*SETTINGS, *settings],
                                program=DRILL), DRILL, environment)

    def lines_of(self, rank):
        return rows_of(self.witnesses / f"{rank}.jsonl")

    def states_of(self, rank):
        """By steps, as they were after each."""
        return {line["steps"]: line for line in self.lines_of(rank) if "steps" in line and "failure" not in line}

    def wait_until(self, condition, run, what):
        deadline = time.monotonic() + 60
        while not condition():
            if run.started.poll() is not None or time.monotonic() > deadline:
                printed = run.end(0)
                self.fail(f"no {what}: {printed}")
            time.sleep(0.001)

    def kill(self, run, victim):
        os.kill(self.lines_of(victim)[0]["pid"], signal.SIGKILL)
        return time.monotonic()

    def judge(self, name, run, victim, killed):
        printed = run.end(ENDED_WITHIN)
        self.assertIsNotNone(printed, f"after {ENDED_WITHIN} s it still runs")
        survivors = [rank for rank in range(PROCESSES) if rank != victim]
        reached = set()
        for rank in survivors:
            with self.subTest(rank=rank):
                last = self.lines_of(rank)[-1]
                self.assertIn("failure", last, printed)
                self.assertLess(last["seconds"] - killed, NOTICED_WITHIN)
                reached.add((last["steps"], last["updates"]))
                before = self.states[rank][last["steps"]]
                for key in ("updates", "digests", "memory"):
                    self.assertEqual(last[key], before[key], key)
                for steps, state in self.states_of(rank).items():
                    self.assertEqual(state, self.states[rank][steps])
        self.assertEqual(len(reached), 1, f"the survivors are at {reached}")
        steps = reached.pop()[0]
        if victim != REPORTER:
            self.check_metrics(name, steps)
        return steps

    def check_metrics(self, name, steps):
        written = self.metrics(name)
        self.assertEqual([row["step"] for row in written], list(range(1, steps + 1)))
        for row in written:
            for key in ("loss", "grad_norm"):
                self.assertEqual(row[key], self.rows[row["step"]][key])

    def test_at_moments_drawn_by_lot(self):
        lot = random.Random(SEED)
        for number in range(KILLS):
            victim, step, part = number % PROCESSES, lot.randint(1, STEPS - 10), lot.random()
            with self.subTest(number=number, victim=victim, step=step, part=part):
                name = f"lot-{number}"
                run = self.launch(name)
                self.wait_until(lambda: len(self.lines_of(victim)) >= 2, run, "first step")
                begin = time.monotonic()
                self.wait_until(lambda: len(self.lines_of(victim)) > step, run, f"step {step}")
                # A part of about one step.
                time.sleep(part * (time.monotonic() - begin) / step)
                killed = self.kill(run, victim)
                self.judge(name, run, victim, killed)

    def test_in_collectives_drawn_by_lot(self):
        """One that the victim has begun may have ended for some of the others, who are in the next step."""
        lot = random.Random(SEED)
        for number in range(KILLS):
            victim, collectives, tests = (number + 1) % PROCESSES, lot.randint(1, 200), lot.randint(0, 3)
            if number % 2 == 0:  # the last of a step
                collectives += -collectives % COLLECTIVES_OF_A_STEP
            with self.subTest(number=number, victim=victim, collectives=collectives, tests=tests):
                name = f"collective-{number}"
                run = self.launch(name, environment=[f"VICTIM={victim}:{collectives}:{tests}"])
                self.wait_until(lambda: self.lines_of(victim) and "killed" in self.lines_of(victim)[-1], run, "death")
                self.judge(name, run, victim, self.lines_of(victim)[-1]["killed"])

    def test_while_the_run_ends(self):
        """All are done, or nobody is."""
        for victim, collectives in ((3, 1), (1, 2), (2, 3), (1, 4), (3, 5)):
            with self.subTest(victim=victim, collectives=collectives):
                name = f"end-{victim}-{collectives}"
                moment = STEPS * COLLECTIVES_OF_A_STEP + collectives
                run = self.launch(name, environment=[f"VICTIM={victim}:{moment}:0"])
                printed = run.end(2 * ENDED_WITHIN)
                self.assertIsNotNone(printed, "it still runs")
                self.assertIn("killed", self.lines_of(victim)[-1])
                ends = [self.lines_of(rank)[-1] for rank in range(PROCESSES) if rank != victim]
                if any("failure" in end for end in ends):
                    self.assertEqual([end.get("steps") for end in ends], [STEPS] * len(ends), printed)
                self.assertEqual(len({"failure" in end for end in ends}), 1, ends)
                self.check_metrics(name, STEPS)

    @needs_stuck_report
    def test_while_a_save_waits_for_the_victim(self):
        """The second stage's shard is written but not reported; the next save waits for this one."""
        victim = 2
        for wait in (0.0, 0.5):  # the others compute the next step; they wait in the next save
            with self.subTest(wait=wait):
                name = f"save-{wait}"
                run = self.launch(name, environment=STUCK)
                self.wait_until(lambda: len(self.lines_of(victim)) >= 1 + EVERY, run, "save")
                time.sleep(wait)
                killed = self.kill(run, victim)
                steps = self.judge(name, run, victim, killed)
                self.assertIn(steps, range(EVERY, 2 * EVERY + 1) if wait == 0 else [2 * EVERY])
                left = list((self.directory / name / "checkpoints").iterdir())
                self.assertEqual(left, [], "a save that was given up leaves nothing")

    @needs_stuck_report
    def test_while_a_save_waits_in_the_step(self):
        """With checkpoint.async = false."""
        victim = 2
        run = self.launch("save", ["checkpoint.async=false"], STUCK)
        self.wait_until(lambda: len(self.lines_of(victim)) >= EVERY, run, "step before the save")
        time.sleep(0.5)
        killed = self.kill(run, victim)
        self.assertEqual(self.judge("save", run, victim, killed), EVERY)

    def test_train_says_so_and_goes_on_when_resumed(self):
        lot = random.Random(SEED)
        for victim in (REPORTER, 3):
            with self.subTest(victim=victim):
                name, step = f"train-{victim}", lot.randint(EVERY + 1, STEPS - 10)
                run = Run(self.command(name, processes=PROCESSES, settings=SETTINGS), CHASKI)
                self.wait_until(lambda: len(self.metrics_so_far(name)) >= step, run, f"step {step}")
                os.kill(process_of(run.started.pid, victim), signal.SIGKILL)
                printed = run.end(ENDED_WITHIN)
                self.assertIsNotNone(printed, f"after {ENDED_WITHIN} s it still runs")
                self.assertNotEqual(run.started.returncode, 0)
                self.check_message(name, printed[1], victim)
                self.train(name, "--resume", "auto", processes=PROCESSES, settings=SETTINGS)
                self.check_metrics(name, STEPS)
                self.assertEqual(self.weights(name), self.weights(self.undisturbed))

    def check_message(self, name, printed, victim):
        said = [line for line in printed.splitlines() if line.startswith(("chaski: error:", "hint:"))]
        self.assertEqual(len(said), 2, printed)
        match = re.fullmatch(rf"chaski: error: rank {victim} died; the run ends after step (\d+); "
                             r"the last checkpoint is of step (\d+)", said[0])
        self.assertIsNotNone(match, said[0])
        self.assertIn("--resume auto", said[1])
        ended, saved = map(int, match.groups())
        written = len(self.metrics(name))
        # The reporter may have died before it wrote what all had agreed on.
        self.assertIn(ended - written, (0, 1) if victim == REPORTER else (0,))
        latest = (self.directory / name / "checkpoints" / "latest").read_text().strip()
        self.assertEqual(latest, f"step-{saved:08d}")


if __name__ == "__main__":
    unittest.main(verbosity=2)
