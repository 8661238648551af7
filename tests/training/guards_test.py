"""What protects a run from bad numbers and bad input."""

import json
import os
import shutil
import subprocess
import unittest

from harness import CHASKI, MPIRUN, TrainingCase, run, words


class Guards(TrainingCase):
    def test_overfitting_one_batch_drives_its_loss_down(self):
        self.train("run", "--overfit-batch", settings=["optimizer.lr=1e-2"])
        self.assertLess(self.losses("run")[-1], 0.1)
        self.train("normal")
        self.assertGreater(self.losses("normal")[-1], 1.0)

    def test_infinite_steps_are_skipped_or_stop_and_change_nothing(self):
        # Weights so large that the scores overflow: the first step has no finite loss.
        explosive = ["model.initializer_range=1e30", "run.max_skipped_steps=3"]
        for processes in (0, 2):
            name = f"skip{processes}"
            done = self.train(name, processes=processes, settings=explosive, check=False)
            self.assert_one_error(done, 1, "not finite", "rank 0", "3 steps before it were skipped")
            self.assertIn("the step is skipped", done.stdout + done.stderr)
            self.assertTrue(all(row["skipped"] for row in self.metrics(name)))
        # None of them is an update; a checkpoint tells both numbers.
        self.train("updates", "--max-steps", 2, settings=explosive)
        shown = json.loads(run([CHASKI, "inspect", self.directory / "updates", "--json"]).stdout)
        self.assertEqual((shown["step"], shown["updates"]), (2, 0))
        done = self.train("stop", settings=[*explosive, 'run.nonfinite="stop"'], check=False)
        self.assert_one_error(done, 1, "step 1 is not finite", "rank 0")

    def test_evaluation_agrees_with_training(self):
        self.train("run", settings=["evaluation.tokens=0"])
        expected = self.metrics("run")[-1]["validation_loss"]
        for processes in (1, 2, 3):
            shown = run([*MPIRUN, "-n", processes, CHASKI, "eval", "--checkpoint", self.directory / "run",
                         "--data", self.workplace.data, "--json"])
            self.assertIn(f'"loss": {str(expected)[:9]}', shown.stdout)

    def test_generation_is_a_function_of_the_seed(self):
        self.train("run")

        def text(seed):
            return run([CHASKI, "generate", "--checkpoint", self.directory / "run", "--prompt", "the ",
                        "--max-tokens", 30, "--seed", seed, "--quiet"]).stdout

        self.assertEqual(text(1), text(1))
        self.assertNotEqual(text(1), text(2))
        self.assertTrue(text(1).startswith("the "))


class BadInput(TrainingCase):
    def refuse(self, code, parts, *arguments, settings=(), processes=2):
        done = self.train("run", *arguments, processes=processes, settings=settings, check=False)
        self.assert_one_error(done, code, *parts)
        self.assertIn("hint:", done.stderr)
        self.assertFalse((self.directory / "run" / "checkpoints").exists())

    def test_config(self):
        self.refuse(2, ["optimizer.learning_rat"], settings=["optimizer.learning_rat=1"])
        self.refuse(2, ["schedule.steps"], settings=['schedule.steps="many"'])
        self.refuse(2, ["model.num_heads", "5"],
                    settings=["model.num_heads=5", "model.num_kv_heads=5"])
        self.refuse(2, ["parallel.global_batch", "8"], processes=3)
        self.refuse(2, ["parallel.pipeline", "3"], settings=["parallel.pipeline=3"], processes=3)

    def test_missing_file(self):
        self.refuse(2, ["nowhere.h5"], settings=['data.train="nowhere.h5"'])
        done = run([*MPIRUN, "-n", 2, CHASKI, "train", "nowhere.toml"], check=False)
        self.assert_one_error(done, 2, "nowhere.toml")

    def other_tokens(self):
        directory = self.directory
        (directory / "other.txt").write_text(words(9000, seed=6))
        run([CHASKI, "tokenizer", "other.txt", "--vocab-size", "390", "--out", "other.model"], cwd=directory)
        run([CHASKI, "tokenize", "other.txt", "--tokenizer", "other.model", "--out", "other.h5"], cwd=directory)
        return directory / "other.h5"

    def test_tokens_of_another_tokenizer(self):
        other = self.other_tokens()
        self.refuse(2, [other, "tokenizer"], settings=[f'data.validation="{other}"'])
        self.refuse(2, [self.workplace.data, "model.vocab_size = 300"], settings=["model.vocab_size=300"])
        self.train("run", "--max-steps", 1)
        done = self.train("run", "--resume", "auto", settings=[f'data.train="{other}"'], check=False)
        self.assert_one_error(done, 2, other, "tokenizer")
        done = run([CHASKI, "eval", "--checkpoint", self.directory / "run", "--data", other], check=False)
        self.assert_one_error(done, 2, other, "tokenizer")

    def test_checkpoint_of_another_model(self):
        self.train("run", "--max-steps", 1)
        done = self.train("run", "--resume", "auto", processes=2, settings=["model.num_layers=3"], check=False)
        self.assert_one_error(done, 2, "another model", "model.num_layers is 2 there", "wants 3")

    def test_weights_for_a_longer_context(self):
        self.train("run", "--max-steps", 1)
        longer = ["model.max_position_embeddings=256", "model.rope_theta=50000", "data.sequence_length=128"]
        done = self.train("longer", "--init-from", self.directory / "run", "--max-steps", 1, settings=longer)
        self.assertIn("has model.max_position_embeddings = 64; this run goes on with 256\n", done.stderr)
        self.assertIn("has model.rope_theta = 10000; this run goes on with 50000\n", done.stderr)
        done = self.train("run", "--resume", "auto", settings=longer, check=False)
        self.assert_one_error(done, 2, "model.max_position_embeddings is 64 there", "wants 256")
        self.assertIn("--init-from", done.stderr)

    def test_two_jobs_in_one_directory(self):
        first = self.start("run", settings=["schedule.steps=100000"])
        self.wait_for_step(first, "run", 2)
        done = self.train("run", "--resume", "auto", processes=2, check=False)
        first.terminate()
        first.communicate()
        self.assert_one_error(done, 2, self.directory / "run", first.pid)

    def test_output_that_cannot_be_written(self):
        (self.directory / "file").write_text("")
        self.refuse(1, [self.directory / "file"], settings=[f'run.output="{self.directory}/file/run"'])

    @unittest.skipUnless(os.geteuid() == 0, "needs to mount a small file system")
    def test_disk_full_during_a_save(self):
        small = self.directory / "run"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1000k", "tmpfs", small], check=True)
        try:
            self.train("run", "--max-steps", 2)
            saved = self.weights("run")
            shutil.copy(self.workplace.path / "text.txt", small / "ballast")
            os.truncate(small / "ballast", 40_000)
            done = self.train("run", "--resume", "auto", processes=2, check=False)
            self.assert_one_error(done, 1, small, "No space left on device")
            self.assertEqual(self.weights("run"), saved, "the older checkpoint must be intact")
        finally:
            subprocess.run(["umount", small], check=True)


if __name__ == "__main__":
    unittest.main(verbosity=2)
