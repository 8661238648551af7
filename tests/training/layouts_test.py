"""The same training on different layouts gives the same numbers."""

import unittest

from harness import TrainingCase


class Layouts(TrainingCase):
    STEPS = 50

    def assert_close(self, name, reference, tolerance=1e-5):
        losses, expected = self.losses(name), self.losses(reference)
        self.assertEqual(len(losses), self.STEPS)
        for step, (loss, other) in enumerate(zip(losses, expected), start=1):
            self.assertLessEqual(abs(loss - other), tolerance * abs(other), f"{name}, step {step}")

    def run_layout(self, name, **options):
        self.train(name, "--max-steps", self.STEPS, **options)

    def test_replicas_give_the_same_losses(self):
        for processes in (1, 2, 4):
            self.run_layout(f"n{processes}", processes=processes)
        self.run_layout("alone")
        self.assertEqual(self.losses("alone"), self.losses("n1"))
        self.assert_close("n2", "n1")
        self.assert_close("n4", "n1")
        self.assertLess(self.losses("n1")[-1], self.losses("n1")[0] - 1.0, "it must learn")

    def test_accumulation_equals_one_large_micro_batch(self):
        self.run_layout("1x8", settings=["parallel.micro_batch=8"])
        self.run_layout("8x1", settings=["parallel.micro_batch=1"])
        self.assert_close("8x1", "1x8")

    def test_passes_are_smaller_micro_batches(self):
        apart = "data.reset_at_documents=true"  # positions, too, are cut by rows, of 32 tokens
        tokens = lambda rows: f"device.tokens_per_pass={rows * 32}"
        self.run_layout("whole", settings=["parallel.micro_batch=8", tokens(0), apart])
        self.run_layout("uneven", settings=["parallel.micro_batch=8", tokens(3), apart])
        self.assert_close("uneven", "whole")
        self.run_layout("two", settings=["parallel.micro_batch=8", tokens(4), apart])
        self.run_layout("small", settings=["parallel.micro_batch=4", tokens(0), apart])
        self.assertEqual(self.losses("two"), self.losses("small"))
        self.assertEqual(self.weights("two"), self.weights("small"))
        self.assertNotEqual(self.weights("two"), self.weights("whole"), "the passes were not made")

    def test_pipelines_give_the_same_losses(self):
        self.run_layout("whole", processes=1)
        for schedule in ("1f1b", "gpipe"):
            self.run_layout(schedule, processes=2,
                            settings=["parallel.pipeline=2", f'parallel.schedule="{schedule}"'])
            self.assert_close(schedule, "whole")
        self.run_layout("both", processes=4, settings=["parallel.pipeline=2", "parallel.data=2"])
        self.assert_close("both", "whole")

    def test_recomputation_changes_no_bit(self):
        self.run_layout("exact")
        self.run_layout("recompute", settings=['model.recompute="block"'])
        self.assertEqual(self.losses("recompute"), self.losses("exact"))
        self.assertEqual(self.weights("recompute"), self.weights("exact"))

    def test_documents_can_be_kept_apart(self):
        self.run_layout("joined")
        self.run_layout("apart", settings=["data.reset_at_documents=true"])
        self.assertNotEqual(self.losses("joined"), self.losses("apart"))
        self.assertLess(self.losses("apart")[-1], self.losses("apart")[0] - 1.0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
