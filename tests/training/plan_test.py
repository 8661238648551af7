"""What `chaski plan` predicts against what a training process takes."""

import json
import os
import pathlib
import subprocess
import unittest

from harness import CHASKI, TrainingCase, launch_environment, run

MODEL = ["--set", 'model.preset="llama-9m"', "--set", "data.sequence_length=256",
         "--set", "parallel.micro_batch=8", "--set", "parallel.global_batch=8",
         "--set", "schedule.steps=2", "--set", "schedule.warmup_steps=1"]

CONFIG = """
[run]
output = "{output}"
[data]
train = "{data}"
[schedule]
steps = 2
[evaluation]
every = 0
"""


def has_sanitizer():
    program = pathlib.Path(CHASKI).read_bytes()
    return b"__asan_init" in program or b"__tsan_init" in program


class Plan(TrainingCase):
    def write_config(self):
        path = self.directory / "plan.toml"
        path.write_text(CONFIG.format(output=self.directory / "run", data=self.workplace.data))
        return path

    def peak_of(self, arguments):
        """Bytes that a process had in memory at most, as the kernel counts them."""
        with subprocess.Popen(arguments, env=launch_environment(), stdout=subprocess.DEVNULL) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        self.assertEqual(process.returncode, 0)
        return usage.ru_maxrss * 1024

    @unittest.skipIf(has_sanitizer(), "a sanitizer has memory of its own")
    def test_memory_of_a_whole_process_is_within_two_percent(self):
        config = self.write_config()
        for variant in ([], ["--set", 'model.recompute="block"', "--set", "checkpoint.async=false"]):
            with self.subTest(variant=variant):
                output = ["--set", f'run.output="{self.directory / f"run{len(variant)}"}"']
                arguments = [config, *MODEL, *variant, *output]
                plan = json.loads(run([CHASKI, "plan", *arguments, "--no-measure", "--json"]).stdout)
                memory = plan["ranks"][0]["memory_bytes"]
                peak = self.peak_of([CHASKI, "train", *map(str, arguments)])
                self.assertLess(abs(memory["total"] / peak - 1), 0.02, f"planned {memory}, peak {peak}")

    def test_wrong_input_is_told(self):
        config = self.write_config()
        done = run([CHASKI, "plan", config, *MODEL, "--processes", "3"], check=False)
        self.assert_one_error(done, 2, "parallel.global_batch is 8", "multiple")

    def test_a_plan_needs_no_data(self):
        config = self.directory / "plan.toml"
        config.write_text(CONFIG.format(output="runs/none", data="nowhere.h5"))
        shown = run([CHASKI, "plan", config, *MODEL, "--no-measure"]).stdout
        self.assertIn("what if", shown)
        self.assertIn("data.train names nowhere.h5: no such file; planned without", shown)

    # 64 million tokens in a pass of a thousand blocks; and blocks of 50 billion weights.
    ACTIVATIONS = ["parallel.micro_batch=1000000", "parallel.global_batch=1000000", "data.sequence_length=64",
                   "device.tokens_per_pass=0", "model.num_layers=1000"]
    WEIGHTS = ["model.hidden_size=65536", "model.intermediate_size=262144", "model.num_layers=1000",
               "model.num_heads=256", "model.num_kv_heads=256"]

    def test_the_machine_is_told_beside_the_plan(self):
        config = self.write_config()
        plan = json.loads(run([CHASKI, "plan", config, *MODEL, "--no-measure", "--json"]).stdout)
        self.assertTrue(plan["fits"])
        total = next(line for line in pathlib.Path("/proc/meminfo").read_text().splitlines()
                     if line.startswith("MemTotal:"))
        self.assertLessEqual(plan["machine_memory_bytes"], int(total.split()[1]) * 1024)
        shown = run([CHASKI, "plan", config, *MODEL, "--no-measure"]).stdout
        self.assertRegex(shown, r"machine +[0-9.]+ [MG]iB needed by the process, of [0-9.]+ [MGT]iB ")
        vast = [part for setting in self.ACTIVATIONS for part in ("--set", setting)]
        # Nothing is measured of it, which would take what is not there.
        shown = run([CHASKI, "plan", config, *MODEL, *vast]).stdout
        self.assertIn("DOES NOT FIT", shown)

    def test_a_run_without_room_is_refused_before_it_begins(self):
        for settings in (self.ACTIVATIONS, self.WEIGHTS):
            for processes in (0, 2):
                batch = [] if settings is self.WEIGHTS else [f"parallel.global_batch={max(1, processes)}000000"]
                done = self.train("run", processes=processes, settings=[*settings, *batch], check=False)
                self.assert_one_error(done, 2, "of memory, but ")
                self.assertIn("hint: a smaller", done.stderr)
                self.assertFalse((self.directory / "run").exists())


if __name__ == "__main__":
    unittest.main()
