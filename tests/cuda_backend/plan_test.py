"""What `chaski plan` predicts for a GPU against what training steps take, with the CUDA backend on the execution
model: the same bytes in every category. And the benchmarks of a GPU, on tiny sizes: that they run and
say what they must.

CHASKI is the program whose GPU is the model, with the sanitizers.
"""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

CHASKI = os.environ["CHASKI"]
# The libraries that hold on to memory are not what is tested.
ENVIRONMENT = os.environ | {"ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1", "HOME": os.environ.get("HOME", "/tmp")}
# Sizes that fill no cache line.
ROWS, LENGTH, VOCABULARY = 3, 7, 37
CONFIG = """
[run]
output = "nowhere"
[model]
preset = "llama-9m"
vocab_size = {vocabulary}
[data]
train = "nowhere.h5"
sequence_length = {length}
[parallel]
micro_batch = {rows}
global_batch = {rows}
[schedule]
steps = 1
"""


def chaski(*arguments):
    done = subprocess.run([CHASKI, *map(str, arguments)], env=ENVIRONMENT, text=True, timeout=300,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode != 0:
        raise AssertionError(f"{arguments}: {done.returncode}: {done.stderr[-4000:]}")
    return json.loads(done.stdout)


def padded(size):
    return (size + 63) // 64 * 64


class Plan(unittest.TestCase):
    def plan_of(self, *settings, arguments=()):
        with tempfile.TemporaryDirectory() as directory:
            config = pathlib.Path(directory) / "plan.toml"
            config.write_text(CONFIG.format(rows=ROWS, length=LENGTH, vocabulary=VOCABULARY))
            overrides = [word for setting in settings for word in ("--set", setting)]
            return chaski("plan", config, *overrides, *arguments, "--no-measure", "--json")

    def test_memory_is_what_steps_take(self):
        for precision, recompute in (("fp32", False), ("bf16", True), ("bf16-pure", False)):
            with self.subTest(precision=precision, recompute=recompute):
                settings = [f"device.precision={precision}", "device.backend=cuda",
                            f"model.recompute={'block' if recompute else 'elementwise'}"]
                plan = self.plan_of(*settings)
                self.assertEqual((plan["backend"], plan["precision"]), ("cuda", precision))
                planned = plan["ranks"][0]["memory_bytes"]
                taken = chaski("bench", "train", "--device", "cuda", "--precision", precision, "--preset",
                               "llama-9m", "--vocab-size", VOCABULARY, "--micro-batch", ROWS,
                               "--sequence-length", LENGTH, "--steps", 1, "--warmup-steps", 0, "--json",
                               *(["--recompute", "block"] if recompute else []))["memory_bytes"]
                # The benchmark holds tokens and targets beside the stage.
                taken["activations"] -= 2 * padded(4 * ROWS * LENGTH)
                for category, size in taken.items():
                    self.assertEqual(planned[category], size, category)
                if precision != "bf16":
                    continue
                # A GPU that is not here is planned as this one, which has no cuDNN.
                unseen = self.plan_of(*settings, arguments=["--device-memory", "1GiB"])
                self.assertEqual(unseen["ranks"][0]["memory_bytes"], planned)
                self.assertTrue(unseen["fits"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
