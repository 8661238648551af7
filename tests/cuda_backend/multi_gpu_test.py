"""Training of several processes, each with a GPU of the execution model, joined by its false NCCL.

CHASKI is the program whose GPUs are the model, with the sanitizers; MPIRUN the launcher with its flags.
"""

import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "training"))
from harness import CHASKI, ENVIRONMENT, MPIRUN, TrainingCase, descendants, kill_all, run  # noqa: E402

# The libraries that hold on to memory are not what is tested.
ENVIRONMENT["ASAN_OPTIONS"] = "detect_leaks=0"
ENVIRONMENT["CHASKI_CUDA_MODEL_DEVICES"] = "4"
SHORT = ["schedule.steps=2", "schedule.warmup_steps=1", "log.every=1", "parallel.global_batch=4",
         "parallel.micro_batch=1", "data.sequence_length=8", "evaluation.tokens=24", "model.hidden_size=16",
         "model.intermediate_size=24", "model.num_heads=2", "model.num_kv_heads=1"]
PIPELINE = "parallel.pipeline=2"


def on(backend, precision="auto", *more):
    return [*SHORT, f"device.backend={backend}", f"device.precision={precision}", *more]


class SeveralGpus(TrainingCase):
    def setUp(self):
        super().setUp()
        # What the false NCCL keeps of processes that were killed goes with it.
        self.nccl = tempfile.mkdtemp(prefix="chaski-test-nccl-", dir="/dev/shm")
        self.addCleanup(shutil.rmtree, self.nccl)
        ENVIRONMENT["CHASKI_CUDA_MODEL_NCCL"] = self.nccl

    def train(self, *arguments, **options):
        done = super().train(*arguments, **options)
        self.assertNotIn("CUDA model", done.stderr)
        self.assertEqual(os.listdir(self.nccl), [], "communicators were left open")
        return done

    def assert_close(self, name, reference, tolerance):
        losses, expected = self.losses(name), self.losses(reference)
        self.assertEqual(len(losses), len(expected))
        for loss, wanted in zip(losses, expected):
            self.assertLess(abs(loss - wanted), tolerance * wanted)

    def test_every_layout_follows_the_cpu(self):
        self.train("cpu", processes=2, settings=on("cpu"))
        done = self.train("replicas", processes=2, settings=on("cuda", "fp32"))
        self.assertRegex(done.stdout, r"device +ranks 0 to 1 on .*compute capability.*driver CUDA.*NCCL 2\.")
        self.assert_close("replicas", "cpu", 1e-5)
        self.train("stages", processes=2, settings=on("cuda", "fp32", PIPELINE))
        self.assert_close("stages", "cpu", 1e-5)
        self.train("both", processes=4, settings=on("cuda", "fp32", PIPELINE))
        self.assert_close("both", "cpu", 1e-5)
        self.train("again", processes=4, settings=on("cuda", "fp32", PIPELINE))
        self.assertEqual(self.losses("again"), self.losses("both"))
        self.assertEqual(self.weights("again"), self.weights("both"))

    def test_streams_may_get_ahead_of_each_other(self):
        layouts = {"replicas": [], "stages": [PIPELINE, 'parallel.schedule="gpipe"', "parallel.global_batch=6"]}
        for name, settings in layouts.items():
            self.train(name, processes=2, settings=on("cuda", "fp32", *settings))
        ENVIRONMENT["CHASKI_CUDA_MODEL_LAZY"] = "2"
        self.addCleanup(ENVIRONMENT.pop, "CHASKI_CUDA_MODEL_LAZY")
        for seed in "12":
            ENVIRONMENT["CHASKI_CUDA_MODEL_SEED"] = seed
            self.addCleanup(ENVIRONMENT.pop, "CHASKI_CUDA_MODEL_SEED", None)
            for name, settings in layouts.items():
                self.train(name + seed, processes=2, settings=on("cuda", "fp32", *settings))
                self.assertEqual(self.all_losses(name + seed), self.all_losses(name))
                self.assertEqual(self.weights(name + seed), self.weights(name))

    def all_losses(self, name):
        return [(row["loss"], row.get("validation_loss")) for row in self.metrics(name)]

    def test_bf16_follows_the_cpu(self):
        self.train("cpu", processes=2, settings=on("cpu"))
        self.train("stages", processes=2, settings=on("cuda", "bf16", PIPELINE))
        self.assert_close("stages", "cpu", 1e-2)
        self.train("pure", processes=2, settings=on("cuda", "bf16-pure"))
        self.assert_close("pure", "cpu", 2e-2)

    def test_a_checkpoint_goes_on_in_another_layout(self):
        self.train("whole", processes=2, settings=on("cpu"))
        self.train("run", "--max-steps", 1, processes=2, settings=on("cuda", "fp32", PIPELINE))
        self.train("run", "--resume", "auto", processes=2, settings=on("cuda", "fp32"))
        self.assert_close("run", "whole", 1e-5)
        results = []
        for device in ("cpu", "cuda"):
            done = run([*MPIRUN, "-n", 2, CHASKI, "eval", "--checkpoint", self.directory / "run", "--data",
                        self.workplace.data, "--device", device, "--max-tokens", 32, "--micro-batch", 1])
            results.append(float(done.stdout.split("loss")[1].split()[0]))
        self.assertLess(abs(results[0] - results[1]), 1e-5 * results[0])

    def test_a_killed_process_ends_the_others(self):
        if "can survive failures" not in run([CHASKI, "--version"]).stdout:
            self.skipTest("this MPI ends the whole job when a process dies")
        endless = on("cuda", "fp32", "schedule.steps=1000")
        self.assert_ends_when_killed("replicas", 1, settings=endless)
        self.assert_ends_when_killed("stages", 0, settings=[*endless, PIPELINE])

    def assert_ends_when_killed(self, name, victim, **options):
        MPIRUN.append("--with-ft")
        MPIRUN.append("ulfm")
        try:
            process = self.start(name, processes=2, **options)
        finally:
            del MPIRUN[-2:]
        self.addCleanup(kill_all, process)
        self.wait_for_step(process, name, 1)
        programs = sorted(pid for pid in descendants(process.pid)
                          if pathlib.Path(f"/proc/{pid}/exe").resolve().name == pathlib.Path(CHASKI).name)
        os.kill(programs[victim], signal.SIGKILL)
        start = time.monotonic()
        _, errors = process.communicate(timeout=60)
        self.assertLess(time.monotonic() - start, 30)
        self.assertIn(f"rank {victim} died", errors)
        self.assertEqual(errors.count("hint: a process or the network has failed"), 1, errors)

    def test_too_few_gpus(self):
        ENVIRONMENT["CHASKI_CUDA_MODEL_DEVICES"] = "1"
        self.addCleanup(ENVIRONMENT.update, {"CHASKI_CUDA_MODEL_DEVICES": "4"})
        done = self.train("auto", processes=2, settings=on("auto"))
        self.assertIn("CPU", done.stdout)
        done = self.train("cuda", processes=2, settings=on("cuda"), check=False)
        self.assert_one_error(done, 2, "this host has 1 GPU", "2 processes")


    def test_gpus_that_are_dealt_out_already(self):
        # As job managers do: each process sees one GPU, which is number 0 for all of them.
        self.train("cpu", processes=2, settings=on("cpu"))
        wrapper = self.directory / "dealt"
        for visible, works in (("$OMPI_COMM_WORLD_LOCAL_RANK", True), ("1", False)):
            wrapper.write_text(f'#!/bin/sh\nCUDA_VISIBLE_DEVICES={visible} exec "{CHASKI}" "$@"\n')
            wrapper.chmod(0o755)
            name = "own" if works else "shared"
            done = self.train(name, processes=2, settings=on("cuda", "fp32"), check=works, program=wrapper)
            if works:
                self.assert_close(name, "cpu", 1e-5)
            else:
                self.assert_one_error(done, 2, "this host has 1 GPU", "2 processes")


if __name__ == "__main__":
    unittest.main(verbosity=2)
