"""Whole training runs with the CUDA backend on the execution model, beside runs on the CPU.

CHASKI is the program whose GPU is the model, with the sanitizers.
"""

import pathlib
import sys
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "training"))
from harness import CHASKI, ENVIRONMENT, TrainingCase, run  # noqa: E402

# The libraries that hold on to memory are not what is tested.
ENVIRONMENT["ASAN_OPTIONS"] = "detect_leaks=0"
# A step of these takes the model most of a second.
SHORT = ["schedule.steps=4", "schedule.warmup_steps=1", "log.every=1", "parallel.global_batch=4",
         "data.sequence_length=8", "evaluation.tokens=32"]


def on(backend, precision="auto", *more):
    return [*SHORT, f"device.backend={backend}", f"device.precision={precision}", *more]


class CudaTraining(TrainingCase):
    def assert_close(self, name, reference, tolerance):
        losses, expected = self.losses(name), self.losses(reference)
        self.assertEqual(len(losses), len(expected))
        for loss, wanted in zip(losses, expected):
            self.assertLess(abs(loss - wanted), tolerance * wanted)

    def test_follows_the_cpu(self):
        self.train("cpu", settings=on("cpu"))
        done = self.train("fp32", settings=on("cuda", "fp32"))
        self.assertIn("compute capability", done.stdout)
        self.assert_close("fp32", "cpu", 1e-5)
        # A CPU would take two passes.
        done = self.train("bf16", settings=on("auto", "auto", "device.tokens_per_pass=8"))
        self.assertRegex(done.stdout, "memory: .* at most, as planned: ")
        self.assertIn("master weights f32, gradients f32, moments f32", done.stdout)
        self.assert_close("bf16", "cpu", 1e-2)
        self.train("pure", settings=on("cuda", "bf16-pure", "device.stochastic_rounding=true"))
        self.assert_close("pure", "cpu", 2e-2)

    def test_the_same_seed_gives_the_same_bits(self):
        self.train("first", settings=on("cuda"))
        self.train("second", settings=on("cuda"))
        self.assertEqual(self.losses("first"), self.losses("second"))
        self.assertEqual(self.weights("first"), self.weights("second"))

    def test_graphs_change_no_bit(self):
        # Two micro-batches a step, whose documents lie elsewhere each time.
        settings = ["parallel.micro_batch=2", "data.reset_at_documents=true"]
        for graphs in ("true", "false"):
            done = self.train(graphs, settings=on("cuda", "auto", *settings, f"device.graphs={graphs}"))
            self.assertNotIn("one by one", done.stdout + done.stderr)
        self.assertEqual(self.losses("true"), self.losses("false"))
        self.assertEqual(self.weights("true"), self.weights("false"))

    def test_two_halves_are_one_run(self):
        self.train("whole", settings=on("cuda"))
        self.train("halves", "--max-steps", 2, settings=on("cuda"))
        self.train("halves", "--resume", "auto", settings=on("cuda"))
        self.assertEqual(self.losses("halves"), self.losses("whole"))
        self.assertEqual(self.weights("halves"), self.weights("whole"))

    def test_checkpoints_go_from_one_backend_to_the_other(self):
        self.train("cpu", settings=on("cpu"))
        for first, second in (("cpu", "cuda"), ("cuda", "cpu")):
            name = f"{first}-{second}"
            self.train(name, "--max-steps", 2, settings=on(first, "fp32"))
            self.train(name, "--resume", "auto", settings=on(second, "fp32"))
            self.assert_close(name, "cpu", 1e-5)

    def test_saves_copy_what_the_next_update_changes(self):
        every = ["checkpoint.every=1", "checkpoint.keep=0"]
        self.train("each", settings=on("cuda", "auto", *every))
        self.train("last", settings=on("cuda"))
        self.assertEqual(self.weights("each"), self.weights("last"))
        for step in (2, 3):
            self.train(f"to{step}", "--max-steps", step, settings=on("cuda"))
            self.assertEqual(self.weights("each", step), self.weights(f"to{step}", step))

    def test_evaluation_and_generation(self):
        self.train("run", settings=on("cpu"))
        checkpoint = self.directory / "run"
        results = []
        for device in ("cpu", "cuda"):
            done = run([CHASKI, "eval", "--checkpoint", checkpoint, "--data", self.workplace.data,
                        "--device", device, "--max-tokens", 32, "--micro-batch", 2])
            results.append(float(done.stdout.split("loss")[1].split()[0]))
        self.assertLess(abs(results[0] - results[1]), 1e-5 * results[0])
        texts = [run([CHASKI, "generate", "--checkpoint", checkpoint, "--prompt", "a", "--device", device,
                      "--max-tokens", 6, "--temperature", 0, "--ignore-eos", "--quiet"]).stdout
                 for device in ("cpu", "cuda")]
        self.assertEqual(texts[0], texts[1])

    def test_what_is_missing_is_said(self):
        for name, setting, value, code, text in (
                ("none", "DEVICES", "0", 2, 'device.backend is "cuda", but there is no GPU'),
                ("old", "DRIVER", "11080", 2, "the driver supports CUDA 11.8 and this program needs "),
                ("other", "NO_CODE", "1", 2, "cuda:0 has compute capability 8.0, for which this program was not compiled"),
                ("little", "MEMORY", "300000", 1, "not enough memory on the GPU for ")):
            with self.subTest(name), mock.patch.dict(ENVIRONMENT, {f"CHASKI_CUDA_MODEL_{setting}": value}):
                done = self.train(name, settings=on("cuda"), check=False)
                self.assertEqual(done.returncode, code, done.stderr)
                self.assertIn(text, done.stderr)
                self.assertIn("\nhint: ", done.stderr)
                if code == 2:
                    self.assertFalse((self.directory / name / "config.toml").exists())

    def test_a_gpu_that_is_not_used_is_said(self):
        with mock.patch.dict(ENVIRONMENT, {"CHASKI_CUDA_MODEL_DEVICES": "0"}):
            done = self.train("cpu", settings=on("auto"))
        self.assertRegex(done.stdout, "device +CPU, .*; no GPU is used: there is no GPU")


if __name__ == "__main__":
    unittest.main(verbosity=2)
