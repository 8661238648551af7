"""Runs that are stopped, killed and gone on with are the runs that they would have been."""

import pathlib
import random
import shutil
import signal
import subprocess
import time
import unittest

from harness import CHASKI, MPIRUN, TrainingCase, kill_all, launch_environment, run

# The training part has about 540 sequences of 64 tokens: with 24 rows a step an epoch is 22 to 23 steps,
# and 100 steps reach into the fifth.
SHORT_EPOCHS = ["parallel.global_batch=24", "data.sequence_length=64", "checkpoint.every=10",
                "evaluation.every=20"]


class Resume(TrainingCase):
    def assert_same_run(self, name, reference):
        self.assertEqual(self.losses(name), self.losses(reference))
        self.assertEqual([row["step"] for row in self.metrics(name)], list(range(1, 101)))
        self.assertEqual(self.weights(name), self.weights(reference))

    def test_the_same_seed_gives_the_same_bits(self):
        self.train("first", processes=2)
        self.train("second", processes=2)
        self.assertEqual(self.losses("first"), self.losses("second"))
        self.assertEqual(self.weights("first"), self.weights("second"))
        self.train("other", settings=["run.seed=12"])
        self.assertNotEqual(self.losses("first")[0], self.losses("other")[0])

    def test_two_halves_are_one_run(self):
        self.train("whole", settings=SHORT_EPOCHS)
        epochs = [row["epoch"] for row in self.metrics("whole")]
        self.assertEqual(epochs[49], 2, "the run must stop in the third epoch")
        self.assertGreaterEqual(epochs[-1], 3, "and go on beyond its end")
        self.train("halves", "--max-steps", 50, settings=SHORT_EPOCHS)
        self.train("halves", "--resume", "auto", settings=SHORT_EPOCHS)
        self.assert_same_run("halves", "whole")

    def test_killed_at_any_moment(self):
        for processes in (0, 2):
            reference = f"whole{processes}"
            self.train(reference, processes=processes, settings=SHORT_EPOCHS)
            generator = random.Random(processes)
            for attempt in range(3):
                name = f"killed{processes}-{attempt}"
                process = self.start(name, processes=processes, settings=SHORT_EPOCHS)
                # Every tenth step begins an asynchronous save: kill just behind one, in the third epoch.
                self.wait_for_step(process, name, generator.choice((50, 60)))
                time.sleep(generator.uniform(0.0, 0.01))
                kill_all(process)
                self.train(name, "--resume", "auto", processes=processes, settings=SHORT_EPOCHS)
                self.assert_same_run(name, reference)

    def test_another_number_of_processes(self):
        self.train("one", settings=SHORT_EPOCHS)
        self.train("more", "--max-steps", 50, processes=2, settings=SHORT_EPOCHS)
        self.train("more", "--resume", "auto", processes=4, settings=SHORT_EPOCHS)
        for loss, expected in zip(self.losses("more"), self.losses("one")):
            self.assertLess(abs(loss - expected), 1e-4 * expected)
        self.train("piped", "--max-steps", 50, processes=2,
                   settings=[*SHORT_EPOCHS, "parallel.pipeline=2"])
        self.train("piped", "--resume", "auto", settings=SHORT_EPOCHS)
        self.train("split", "--max-steps", 50, settings=SHORT_EPOCHS)
        self.train("split", "--resume", "auto", processes=2, settings=[*SHORT_EPOCHS, "parallel.pipeline=2"])
        for name in ("piped", "split"):
            for loss, expected in zip(self.losses(name), self.losses("one")):
                self.assertLess(abs(loss - expected), 1e-4 * expected)

    def test_signals_save_and_end(self):
        self.train("whole", settings=SHORT_EPOCHS)
        for number in (signal.SIGTERM, signal.SIGINT):
            name = f"signal{number}"
            process = self.start(name, settings=[*SHORT_EPOCHS, "checkpoint.every=0"])
            self.wait_for_step(process, name, 25)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 0, out + err)
            self.assertIn("ended at step", out)
            self.train(name, "--resume", "auto", settings=SHORT_EPOCHS)
            self.assert_same_run(name, "whole")

    def test_signals_to_the_wrapped_mpirun_save_and_end(self):
        wrapper = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "bin" / "mpirun"
        launcher = shutil.which(MPIRUN[0])
        environment = launch_environment()
        environment["PATH"] = f"{pathlib.Path(launcher).parent}:{environment['PATH']}"
        for number in (signal.SIGTERM, signal.SIGINT):
            name = f"wrapped{number}"
            command = self.command(name, settings=["schedule.steps=100000"])
            process = subprocess.Popen([str(wrapper), *MPIRUN[1:], "-n", "2", *command], text=True,
                                       env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self.wait_for_step(process, name, 5)
            process.send_signal(number)
            out, err = process.communicate(timeout=120)
            self.assertEqual(process.returncode, 0, out + err)
            last = self.metrics(name)[-1]["step"]
            self.assertIn(f"ended at step {last}", out)
            newest = (self.directory / name / "checkpoints" / "latest").read_text().strip()
            self.assertEqual(newest, f"step-{last:08d}")

    def test_damaged_checkpoint_is_skipped(self):
        self.train("run", settings=SHORT_EPOCHS + ["checkpoint.keep=3"])
        checkpoints = sorted((self.directory / "run" / "checkpoints").glob("step-*"))
        self.assertEqual([path.name for path in checkpoints],
                         ["step-00000080", "step-00000090", "step-00000100"])
        shard = next(checkpoints[-1].glob("*.h5"))
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
        (checkpoints[-2] / "COMPLETE").unlink()
        before = self.losses("run")
        done = self.train("run", "--resume", "auto", settings=SHORT_EPOCHS)
        self.assertIn("step-00000100", done.stderr)
        self.assertIn("step-00000090", done.stderr)
        self.assertIn("step 80", done.stdout)
        self.assertEqual(self.losses("run"), before)

    def test_readers_of_a_run_say_which_checkpoints_they_passed_over(self):
        self.train("run", "--max-steps", 4, settings=["checkpoint.every=2"])
        shard = next((self.directory / "run" / "checkpoints" / "step-00000004").glob("*.h5"))
        shard.write_bytes(shard.read_bytes()[:-100])
        done = run([CHASKI, "eval", "--checkpoint", self.directory / "run", "--data", self.workplace.data])
        self.assertIn("skipped", done.stderr)
        self.assertIn("step-00000004", done.stderr)
        self.assertIn("step-00000002 (step 2)", done.stdout)

    def test_nothing_but_damaged_checkpoints_is_an_error(self):
        self.train("run", "--max-steps", 2)
        shard = next((self.directory / "run" / "checkpoints" / "step-00000002").glob("*.h5"))
        shard.write_bytes(shard.read_bytes()[:-100])
        done = self.train("run", "--resume", "auto", processes=2, check=False)
        self.assert_one_error(done, 1, "none is intact")
        self.assertEqual(len(self.metrics("run")), 2, "nothing was overwritten")

    def test_resume_of_nothing_begins_and_of_everything_ends(self):
        self.train("run", "--resume", "auto")
        done = self.train("run", "--resume", "auto")
        self.assertIn("nothing to do", done.stdout)
        again = self.train("run", check=False)
        self.assert_one_error(again, 2, "checkpoints", "holds checkpoints of an earlier run")


if __name__ == "__main__":
    unittest.main(verbosity=2)
