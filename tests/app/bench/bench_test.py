"""Every benchmark runs on tiny sizes and says what it must: `--json` is one object with the fields that
scripts and documents read, the table goes to standard output too, and wrong use is refused. No timing is
asserted. Usage: bench_test.py CHASKI MPIRUN [FLAGS…]
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

CHASKI, *MPIRUN = sys.argv[1:]
TINY = ["--preset", "llama-9m", "--vocab-size", "300"]
QUICK = ["--seconds", "0", "--repetitions", "1", "--threads", "1"]


def run(*arguments, processes=0):
    launcher = [*MPIRUN, "-n", str(processes)] if processes else []
    return subprocess.run([*launcher, CHASKI, "bench", *map(str, arguments)], text=True, timeout=300,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


class BenchTest(unittest.TestCase):
    def report(self, *arguments, processes=0):
        done = run(*arguments, "--json", processes=processes)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def table(self, *arguments, words=(), processes=0):
        done = run(*arguments, processes=processes)
        self.assertEqual(done.returncode, 0, done.stderr)
        for word in words:
            self.assertIn(word, done.stdout)

    def check_line(self, line, rate, repetitions=1):
        seconds = line["seconds"]
        self.assertLessEqual(seconds["best"], seconds["median"])
        self.assertLessEqual(seconds["median"], seconds["worst"])
        self.assertGreaterEqual(line["repetitions"], repetitions)
        self.assertGreater(line[rate], 0)
        self.assertGreater(line["share"], 0)

    def test_gemm(self):
        arguments = ["gemm", *TINY, *QUICK, "--tokens", 96]
        report = self.report(*arguments)
        self.assertEqual(report["benchmark"], "gemm")
        self.assertEqual(report["machine"]["threads"], 1)
        lines = report["gemms"]
        self.assertEqual(len(lines), 15)
        for line in lines:
            self.check_line(line, "gflops")
            self.assertLessEqual(line["best_gflops"], report["ceiling_gflops"] * (1 + 1e-9))
        self.assertAlmostEqual(sum(line["step_weight"] for line in lines), 1.0)
        # 6 FLOPs for each weight of 4 blocks and of the head, and each token.
        weights = 4 * (128 * 3 * 128 + 128 * 128 + 3 * 128 * 352) + 300 * 128
        self.assertAlmostEqual(report["step_gflop"], 6e-9 * weights * 96)
        # The harmonic mean of the rates, weighted by FLOPs.
        harmonic = 1 / sum(line["step_weight"] / line["gflops"] for line in lines)
        self.assertAlmostEqual(report["step_gflops"] / harmonic, 1.0)
        self.table(*arguments, words=("gate and up", "dW", "of the ceiling"))

    def test_gemm_counts_part_of_a_head_chunk(self):
        report = self.report("gemm", *TINY, *QUICK, "--tokens", 768)
        head = [line for line in report["gemms"] if line["layer"] == "head"]
        self.assertEqual([line["per_step"] for line in head], [1.5] * 3)
        self.assertEqual(head[0]["m"], 512)

    def test_ops(self):
        arguments = ["ops", *TINY, *QUICK, "--micro-batch", 2, "--sequence-length", 48]
        report = self.report(*arguments)
        self.assertGreater(report["gemm_ceiling_gflops"], 0)
        for kind in ("read", "write", "copy", "triad"):
            self.assertGreater(report["memory_gb_per_second"][kind], 0)
        ops = {line["op"]: line for line in report["ops"]}
        for line in ops.values():
            self.check_line(line, "rate")
        for name in ("embedding_forward", "embedding_backward", "rmsnorm_forward", "add_rmsnorm_forward",
                     "rmsnorm_recompute", "rmsnorm_backward", "rotary_forward", "attention_forward",
                     "attention_backward", "swiglu_forward", "swiglu_backward",
                     "moc_forward", "moc_backward", "moc_products_forward", "moc_products_backward",
                     "head_loss", "cross_entropy", "adamw", "sum_of_squares", "zero_gradients",
                     "one_row_product"):
            self.assertIn(name, ops)
        # Bytes by hand: x and y of 96 × 128, the weight and the inverse norms.
        self.assertEqual(ops["rmsnorm_forward"]["work"], 4 * (2 * 96 * 128 + 128 + 96))
        self.assertEqual(ops["swiglu_backward"]["work"], 4 * 6 * 96 * 352)
        # 64 of 352 channels, of which a bitmap says which: gates, ups, products; kept gates and ups.
        self.assertEqual(ops["moc_forward"]["work"], 96 * (4 * (3 * 352 + 2 * 64) + 352 // 8))
        # Eight of the FFN's nine products, of the kept channels.
        self.assertEqual(ops["moc_products_forward"]["work"], 2 * (2 * 96 * 64 * 128))
        self.assertEqual(ops["moc_products_backward"]["work"], 6 * (2 * 96 * 64 * 128))
        self.assertEqual(ops["adamw"]["work"] / ops["sum_of_squares"]["work"], 7)
        # 48·49/2 scores a head, two products of 32 each, 4 heads, 2 rows.
        self.assertEqual(ops["attention_forward"]["work"], 2 * 4 * (48 * 49 // 2) * 2 * 2 * 32)
        # Five products instead of two.
        self.assertEqual(ops["attention_backward"]["work"] / ops["attention_forward"]["work"], 2.5)
        # Logits twice, their gradient; targets and losses.
        self.assertEqual(ops["cross_entropy"]["work"], 4 * (3 * 96 * 300 + 2 * 96))
        self.table(*arguments, words=("swiglu_backward", "GFLOP/s", "triad"))

    def test_tokenize(self):
        arguments = ["tokenize", "--bytes", 150000, "--vocab-size", 600, "--threads", 2, "--repetitions", 1]
        report = self.report(*arguments)
        parts = [(line["part"], line["threads"]) for line in report["lines"]]
        self.assertEqual(parts, [(part, threads) for threads in (1, 2)
                                 for part in ("sentencepiece", "encoder", "pipeline")])
        for line in report["lines"]:
            self.check_line(line, "bytes_per_second")
        self.assertEqual(report["vocab_size"], 600)
        self.assertGreater(report["tokens"], 150000 / 20)
        self.table(*arguments, words=("sentencepiece", "pipeline"))

    def test_tokenize_a_given_file(self):
        with tempfile.TemporaryDirectory() as directory:
            text = pathlib.Path(directory) / "text.txt"
            text.write_text("The quick brown fox jumps over the lazy dog.\n\n" * 2000)
            report = self.report("tokenize", text, "--dir", directory, "--vocab-size", 300, "--threads", 1,
                                 "--repetitions", 1)
            self.assertEqual(report["corpus"], "given")
            self.assertEqual(report["pipeline_bytes"], 2000 * len("The quick brown fox jumps over the lazy dog."))
            self.assertEqual(os.listdir(directory), ["text.txt"])

    def test_checkpoint(self):
        with tempfile.TemporaryDirectory() as directory:
            arguments = ["checkpoint", *TINY, "--dir", directory, "--threads", 1, "--repetitions", 2]
            report = self.report(*arguments)
            self.assertEqual([line["part"] for line in report["lines"]], ["copy", "write", "read back"])
            for line in report["lines"]:
                self.check_line(line, "bytes_per_second", repetitions=2)
                self.assertGreater(line["plain_bytes_per_second"], 0)
            self.assertGreater(report["file_bytes"], report["state_bytes"] * 0.99)
            self.assertGreaterEqual(report["stall_share"], 0)
            self.assertLess(report["stall_share"], 1)
            self.table(*arguments, words=("copy", "beside training"))
            self.assertEqual(os.listdir(directory), [])
            done = run("checkpoint", *TINY, "--dir", directory + "/missing")
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn("must be an existing folder", done.stderr)

    def test_decode(self):
        arguments = ["decode", *TINY, *QUICK, "--context", 7]
        report = self.report(*arguments, "--batch", 1, 3, "--moc-keep", 60)
        lines = {(line["ffn"], line["batch"]): line for line in report["lines"]}
        self.assertEqual(sorted(lines), sorted((ffn, batch) for ffn in ("swiglu", "moc", "moc 2:8")
                                               for batch in (1, 3)))
        # Four blocks of width 128 and 352, the head, the norms, one embedding a sequence; seven keys and
        # values a block and sequence.
        for (ffn, batch), line in lines.items():
            keep = {"swiglu": 352, "moc": 60, "moc 2:8": 88}[ffn]
            self.assertEqual(line["keep"], keep)
            self.check_line(line, "tokens_per_second")
            self.check_line(line["ffn_part"], "tokens_per_second")
            other = 4 * (4 * (4 * 128 * 128 + 2 * 128) + 300 * 128 + 128 + batch * (128 + 4 * 2 * 7 * 128))
            for part, rest in ((line, other), (line["ffn_part"], 0)):
                rows = (part["bytes_per_token"] * batch - rest) / (4 * 4 * 128)
                if batch == 1 or ffn == "swiglu":
                    self.assertEqual(rows, 352 + 2 * keep)
                else:
                    self.assertGreaterEqual(rows, 352 + 2 * keep)
                    self.assertLess(rows, 352 + 2 * 3 * keep)
        self.table(*arguments, "--ffn", "moc-2:8", words=("tokens/s", "share", "moc 2:8", "x dense"))

    def test_allreduce(self):
        arguments = ["allreduce", *TINY, "--threads", 1, "--repetitions", 2]
        report = self.report(*arguments, processes=2)
        self.assertEqual(report["processes"], 2)
        self.assertEqual([line["way"] for line in report["lines"]],
                         ["gradient reducer", "MPI_Iallreduce", "copy in memory"])
        for line in report["lines"]:
            self.check_line(line, "bytes_per_second", repetitions=2)
            self.assertGreater(line["cpu_seconds"], 0)
        # 4 bytes for each parameter, and the padding of a few cache lines.
        parameters = 4 * (128 * 3 * 128 + 128 * 128 + 3 * 128 * 352 + 2 * 128) + 2 * 300 * 128
        self.assertGreaterEqual(report["gradient_bytes"], 4 * parameters)
        self.assertLess(report["gradient_bytes"], 4 * parameters + 64 * 30)
        self.table(*arguments, words=("MPI_Iallreduce",), processes=2)

    def test_one_process_is_measured_alone(self):
        for benchmark in ("gemm", "ops", "decode", "tokenize", "checkpoint"):
            done = run(benchmark, processes=2)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertEqual(done.stderr.count("chaski: error:"), 1, done.stderr)
            self.assertIn(f"bench {benchmark}: measures one process, but 2 were started", done.stderr)
            self.assertIn("hint: start it without mpirun", done.stderr)
        self.report("gemm", *TINY, *QUICK, "--tokens", 96, processes=1)

    def test_what_does_not_fit_is_refused_at_once(self):
        for benchmark in ("train", "checkpoint"):
            done = run(benchmark, "--sequence-length", 2147483647, "--micro-batch", 1000000)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn("of memory, but ", done.stderr)

    def test_a_signal_leaves_nothing_behind(self):
        for benchmark, options in (("checkpoint", TINY), ("tokenize", ["--bytes", 20000000])):
            for number in (signal.SIGINT, signal.SIGTERM):
                with tempfile.TemporaryDirectory() as directory:
                    arguments = [benchmark, *options, "--dir", directory, "--repetitions", 100000]
                    with subprocess.Popen([CHASKI, "bench", *map(str, arguments)], stdout=subprocess.DEVNULL,
                                          stderr=subprocess.PIPE, text=True) as process:
                        deadline = time.monotonic() + 60
                        while not any(pathlib.Path(directory).glob("chaski-bench-*/*")):
                            self.assertIsNone(process.poll(), "ended by itself")
                            self.assertLess(time.monotonic(), deadline)
                            time.sleep(0.01)
                        process.send_signal(number)
                        _, told = process.communicate(timeout=60)
                    self.assertEqual(process.returncode, 128 + number, told)
                    self.assertEqual(told, "")
                    self.assertEqual(os.listdir(directory), [])

    def test_allreduce_needs_several_processes(self):
        done = run("allreduce", *TINY)
        self.assertEqual(done.returncode, 2)
        self.assertIn("needs 2 processes or more", done.stderr)
        self.assertIn("hint: mpirun -n 2", done.stderr)

    def train_arguments(self, *more):
        return ["train", *TINY, "--micro-batch", 2, "--micro-batches", 2, "--sequence-length", 32, "--steps", 2,
                "--warmup-steps", 1, "--threads", 1, *more]

    def test_train_profile(self):
        report = self.report(*self.train_arguments("--profile"))
        self.assertGreater(report["gemm_share"], 0)
        profile = {line["part"]: line for line in report["profile"]}
        self.assertAlmostEqual(sum(line["share"] for line in profile.values()), 1.0)
        self.assertGreater(profile["rest"]["share"], 0)
        # Two micro-batches of four blocks; the head is one chunk.
        for part, calls in (("qkv forward", 8), ("qkv dX", 8), ("gate and up dW", 8), ("head dW", 2),
                            ("attention backward", 8), ("SwiGLU forward", 8), ("rotary", 16),
                            ("norms forward", 18), ("norms backward", 34), ("cross-entropy", 2),
                            ("optimizer", 39), ("gradient norm", 39), ("embedding", 4), ("agreement", 1)):
            self.assertEqual(profile[part]["calls"], calls, part)
        self.assertNotIn("other products", profile)
        for part in ("down dW", "head forward"):
            self.assertGreater(profile[part]["gflops"], 0)
        self.table(*self.train_arguments("--profile"), words=("part of the step", "rest"))

    def test_train_profile_of_tiles(self):
        # 1050 tokens go through an FFN in two tiles, the second the smaller one.
        arguments = ["train", "--preset", "llama-9m", "--vocab-size", 64, "--micro-batch", 5, "--sequence-length", 210,
                     "--tokens-per-pass", 1050, "--steps", 1, "--warmup-steps", 1, "--threads", 1, "--profile"]
        for ffn, parts in (("swiglu", ("gate and up forward", "gate and up dX", "down dW", "SwiGLU backward")),
                           ("moc", ("gates forward", "MoC products forward", "MoC products backward"))):
            profile = {line["part"]: line for line in self.report(*arguments, "--ffn", ffn)["profile"]}
            for part in parts:
                self.assertEqual(profile[part]["calls"], 8, part)
            self.assertEqual(profile["qkv dX"]["calls"], 4)
            self.assertNotIn("other products", profile)

    def test_moc_options_without_moc_are_refused(self):
        for arguments in (["train", *TINY, "--moc-keep", 32], ["decode", *TINY, "--ffn", "swiglu", "--moc-keep", 32]):
            done = run(*arguments)
            self.assertEqual(done.returncode, 2)
            self.assertIn("--moc-keep is of Mixture-of-Channels", done.stderr)
            self.assertIn("add --ffn moc", done.stderr)
        for arguments in (["decode", *TINY, "--ffn", "moc-2:8", "--moc-keep", 32],
                          ["train", *TINY, "--ffn", "moc", "--moc-pattern", "2:8", "--moc-keep", 32]):
            done = run(*arguments)
            self.assertEqual(done.returncode, 2)
            self.assertIn("--moc-keep 32 has no effect where two of each eight channels are kept", done.stderr)

    def test_train_without_profile(self):
        self.assertNotIn("profile", self.report(*self.train_arguments()))

    def test_train_keeps_channels_in_the_form_that_was_chosen(self):
        arguments = self.train_arguments("--ffn", "moc")
        two_bytes = self.report(*arguments, "--moc-index", "uint16")
        smaller = self.report(*arguments)
        self.assertEqual((two_bytes["moc_keep"], two_bytes["moc_index"]), (64, "uint16"))
        self.assertEqual((smaller["moc_keep"], smaller["moc_index"]), (64, "bitmap"))
        # Of 2 x 32 tokens in four blocks two bytes for each of 64 channels, or a bit for each of 352.
        self.assertEqual(two_bytes["memory_bytes"]["activations"] - smaller["memory_bytes"]["activations"],
                         2 * 32 * 4 * (2 * 64 - 352 // 8))
        done = run(*arguments, "--moc-index", "bytes")
        self.assertEqual(done.returncode, 2, done.stderr)
        for name in ("--moc-index", "bytes", "auto", "uint16", "bitmap"):
            self.assertIn(name, done.stderr)

    def test_train_profile_of_two_processes_has_the_reduction(self):
        report = self.report(*self.train_arguments("--profile"), processes=2)
        profile = {line["part"]: line for line in report["profile"]}
        self.assertGreater(profile["all-reduce"]["calls"], 2)
        self.assertAlmostEqual(sum(line["share"] for line in profile.values()), 1.0)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
