"""The benchmarks of a GPU on tiny sizes, with the CUDA backend on the execution model: that they run and say what
they must. No timing is asserted.

CHASKI is the program whose GPU is the model, with the sanitizers.
"""

import json
import math
import os
import subprocess
import unittest

CHASKI = os.environ["CHASKI"]
# The libraries that hold on to memory are not what is tested.
ENVIRONMENT = os.environ | {"ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1"}
TINY = ["--preset", "llama-9m", "--vocab-size", "40", "--device", "cuda"]
QUICK = ["--seconds", "0", "--repetitions", "1"]


class Bench(unittest.TestCase):
    def report(self, *arguments):
        done = subprocess.run([CHASKI, "bench", *map(str, arguments), "--json"], env=ENVIRONMENT, text=True,
                              timeout=300, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual(done.returncode, 0, done.stderr[-4000:])
        return json.loads(done.stdout)

    def assert_positive(self, *numbers):
        for number in numbers:
            self.assertTrue(math.isfinite(number) and number > 0, number)

    def test_products(self):
        report = self.report("gemm", *TINY, *QUICK, "--tokens", 6)
        self.assertEqual(report["machine"]["precision"], "bf16")
        self.assertIn("compute capability", report["machine"]["device"])
        self.assertEqual(len(report["gemms"]), 15)
        for line in report["gemms"]:
            self.assert_positive(line["gflops"], line["share"], line["seconds"]["best"])
        self.assert_positive(report["ceiling_gflops"], report["step_gflops"])

    def test_ops(self):
        for precision, computed, adamw in (("bf16", 2, 30), ("fp32", 4, 28)):
            report = self.report("ops", *TINY, *QUICK, "--precision", precision, "--micro-batch", 2,
                                 "--sequence-length", 5)
            self.assertEqual(report["machine"]["precision"], precision)
            self.assert_positive(report["gemm_ceiling_gflops"], *report["memory_gb_per_second"].values())
            ops = {line["op"]: line for line in report["ops"]}
            for line in ops.values():
                self.assert_positive(line["rate"], line["share"], line["work"])
            for name in ("embedding_backward", "add_rmsnorm_forward", "rmsnorm_backward", "rotary_forward",
                         "attention_forward", "attention_backward", "swiglu_backward", "cross_entropy", "adamw"):
                self.assertIn(name, ops)
            # Bytes by hand, for 10 tokens: x, y and weight of `computed` bytes, inverse norms of 4; logits of 4,
            # read twice, and their gradient, targets and losses of 4; gradient, and weight and moments both
            # ways, and the rounded weight.
            self.assertEqual(ops["rmsnorm_forward"]["work"], computed * (2 * 10 * 128 + 128) + 4 * 10)
            self.assertEqual(ops["cross_entropy"]["work"], (2 * 4 + computed) * 10 * 40 + 2 * 4 * 10)
            self.assertEqual(ops["adamw"]["work"] / (ops["sum_of_squares"]["work"] / 4), adamw)

    def test_decoding(self):
        report = self.report("decode", *TINY, *QUICK, "--context", 3, "--batch", 2)
        lines = {line["ffn"]: line for line in report["lines"]}
        for line in lines.values():
            self.assert_positive(line["tokens_per_second"], line["share"])
        self.assertLess(lines["moc"]["bytes_per_token"], lines["swiglu"]["bytes_per_token"])

    def test_profile_of_training(self):
        report = self.report("train", *TINY, "--micro-batch", 1, "--sequence-length", 5, "--steps", 1,
                             "--warmup-steps", 0, "--profile")
        self.assert_positive(report["gemm_ceiling_gflops"], report["gemm_share"])
        parts = {line["part"]: line for line in report["profile"]}
        for name in ("qkv forward", "gate and up dW", "attention backward", "cross-entropy", "optimizer"):
            self.assert_positive(parts[name]["seconds"])
        self.assertAlmostEqual(sum(line["share"] for line in parts.values()), 1.0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
