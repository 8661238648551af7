"""What a machine does to a run: directories that vanish, disks that fill up or become read-only, other jobs,
clocks that jump, a single core."""

import os
import signal
import subprocess
import tempfile
import time
import unittest

from harness import CHASKI, TrainingCase, kill_all, launch_environment, run

ENDLESS = ["schedule.steps=1000000", "schedule.warmup_steps=10", "schedule.kind=\"constant\"",
           "checkpoint.every=20", "log.every=1000000"]
needs_root = unittest.skipUnless(os.geteuid() == 0, "needs root, to mount file systems")


def insist(command):
    """A mount is busy while the run has a file open in it, which is a moment each time."""
    deadline = time.monotonic() + 30
    while True:
        done = subprocess.run([str(part) for part in command], stderr=subprocess.PIPE, text=True)
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"{command}: {done.stderr}")
        time.sleep(0.02)


class Chaos(TrainingCase):
    def setUp(self):
        super().setUp()
        self.running = []
        self.mounted = []
        self.addCleanup(self.clean_up)

    def clean_up(self):
        for process in self.running:
            if process.poll() is None:
                kill_all(process)
        for path in reversed(self.mounted):
            subprocess.run(["umount", path], check=False)

    def mount(self, *arguments):
        done = subprocess.run(["mount", *map(str, arguments)], stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            self.skipTest(f"mount is not allowed here: {done.stderr.strip()}")
        self.mounted.append(arguments[-1])

    def unmount(self, path):
        insist(["umount", path])
        self.mounted.remove(path)

    def begin(self, *arguments, settings=(), environment=(), **options):
        """Starts a run without an end, with its output in files."""
        self.out, self.err = self.directory / "out.log", self.directory / "err.log"
        command = self.command(*arguments, settings=[*ENDLESS, *settings], **options)
        program = command.index(str(CHASKI))
        command[program:program] = ["env", *environment]
        with open(self.out, "w") as out, open(self.err, "w") as err:
            process = subprocess.Popen(command, env=launch_environment(), stdout=out, stderr=err,
                                       start_new_session=True)
        self.running.append(process)
        return process

    def wait_for(self, process, condition, what):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if condition():
                return
            if process.poll() is not None:
                self.fail(f"ended early, before {what}:\n{self.printed()}")
            time.sleep(0.01)
        self.fail(f"no {what} within a minute:\n{self.printed()}")

    def printed(self):
        return self.out.read_text()[-2000:] + self.err.read_text()[-2000:]

    def wait_for_text(self, process, text):
        self.wait_for(process, lambda: text in self.out.read_text() + self.err.read_text(), repr(text))

    def wait_for_save(self, process, name):
        """Of a checkpoint that is younger than this call."""
        latest = self.directory / name / "checkpoints" / "latest"
        before = latest.read_text() if latest.exists() else ""
        self.wait_for(process, lambda: latest.exists() and latest.read_text() not in ("", before), "new checkpoint")

    def stop(self, process, code=0, by=signal.SIGTERM):
        process.send_signal(by)
        process.wait(timeout=60)
        self.assertEqual(process.returncode, code, self.printed())

    def vanish(self, path):
        """All at once, whatever is being written there."""
        os.rename(path, tempfile.mkdtemp(dir=self.directory, prefix="gone-"))

    def assert_same_as_undisturbed(self, name):
        """The run has come to the weights that as many undisturbed steps come to."""
        shown = (self.directory / name / "checkpoints" / "latest").read_text()
        steps = int(shown.strip().removeprefix("step-"))
        self.train("undisturbed", "--max-steps", steps,
                   settings=[*ENDLESS, "checkpoint.every=0"])
        self.assertEqual(self.weights(name), self.weights("undisturbed"))
        self.assertEqual([row["loss"] for row in self.metrics(name)][-1], self.losses("undisturbed")[-1])


class Directories(Chaos):
    def test_checkpoints_that_vanish_are_made_again(self):
        process = self.begin("run")
        self.wait_for_save(process, "run")
        self.vanish(self.directory / "run" / "checkpoints")
        self.wait_for_save(process, "run")
        self.stop(process)
        self.assertIn(f"{self.directory}/run/checkpoints had vanished", self.printed())
        self.assert_same_as_undisturbed("run")

    def test_an_output_directory_that_vanishes_is_made_again(self):
        process = self.begin("run")
        self.wait_for_save(process, "run")
        self.vanish(self.directory / "run")
        self.wait_for_save(process, "run")
        self.stop(process)
        self.assertIn("had vanished", self.printed())
        self.assert_same_as_undisturbed("run")
        self.assertTrue(self.metrics("run"), "the metrics go on in a new file")

    def test_checkpoints_that_cannot_be_made_again_end_in_an_error(self):
        self.check_saves_that_fail()

    @unittest.skipUnless("HEAD_START" in os.environ, "the library that lets saves fail at once was not built")
    def test_an_end_at_a_step_whose_save_has_failed_is_an_error(self):
        for processes in (0, 2):  # two: a stage each, both of which save
            with self.subTest(processes=processes):
                # As scripts/bin/mpirun does: by SIGTERM mpirun kills.
                stopped_by = signal.SIGUSR1 if processes else signal.SIGTERM
                self.check_saves_that_fail(
                    f"run{processes}", stopped_by, processes=processes, environment=[f"LD_PRELOAD={os.environ['HEAD_START']}"],
                    settings=["checkpoint.every=1", f"parallel.pipeline={max(1, processes)}"])

    def check_saves_that_fail(self, name="run", stopped_by=signal.SIGTERM, **options):
        process = self.begin(name, **options)
        self.wait_for_save(process, name)
        checkpoints = self.directory / name / "checkpoints"
        while checkpoints.is_dir():
            self.vanish(checkpoints)
            try:
                checkpoints.write_text("in the way")
            except IsADirectoryError:
                pass  # a save was faster
        self.wait_for_text(process, "was not saved")
        step = self.metrics_so_far(name)[-1]["step"]
        self.wait_for(process, lambda: self.metrics_so_far(name)[-1]["step"] > step + 50, "going on")
        self.stop(process, code=1, by=stopped_by)
        self.assertIn("chaski: error: ", self.err.read_text())
        self.assertIn(str(checkpoints), self.err.read_text())

    @needs_root
    def test_a_directory_that_is_read_only_from_the_beginning(self):
        (self.directory / "run").mkdir()
        self.mount("-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", self.directory / "run")
        for processes in (0, 2):
            done = self.train("run", processes=processes, check=False)
            self.assert_one_error(done, 1, self.directory / "run", "Read-only file system")
            self.assertIn("hint:", done.stderr)

    @needs_root
    def test_a_directory_that_becomes_read_only_for_a_while(self):
        process = self.begin("run")
        self.wait_for_save(process, "run")
        checkpoints = self.directory / "run" / "checkpoints"
        # A mount over itself, made read-only: the run's open files stay writable, as on a real disk
        # that the kernel has remounted they would not; what is opened from now on is refused.
        self.mount("--bind", checkpoints, checkpoints)
        insist(["mount", "-o", "remount,bind,ro", checkpoints])
        self.wait_for_text(process, "Read-only file system")
        self.wait_for_text(process, "training goes on")
        self.unmount(checkpoints)
        self.wait_for_save(process, "run")
        self.stop(process)
        self.assert_same_as_undisturbed("run")

    @needs_root
    def test_a_disk_that_is_full_for_a_while(self):
        small = self.directory / "run"
        small.mkdir()
        self.mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", small)
        process = self.begin("run", settings=["checkpoint.keep=1"])
        self.wait_for_save(process, "run")
        ballast = small / "ballast"
        with open(ballast, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        self.wait_for_text(process, "No space left on device")
        ballast.unlink()
        self.wait_for_save(process, "run")
        self.stop(process)
        self.assert_same_as_undisturbed("run")
        names = {path.name for path in small.iterdir()}
        self.assertLessEqual(names, {"config.toml", "metrics.jsonl", "checkpoints"})


class OtherJobs(Chaos):
    def test_of_jobs_that_start_together_one_runs(self):
        jobs = [self.start("run", "--resume", "auto", settings=["schedule.steps=300"]) for _ in range(4)]
        outcomes = [(job, *job.communicate(timeout=120)) for job in jobs]
        done = [job for job, _, _ in outcomes if job.returncode == 0]
        for job, _, err in outcomes:
            if job.returncode != 0:
                self.assertEqual(job.returncode, 2, err)
                self.assertIn("is in use by process", err)
        self.assertGreaterEqual(len(done), 1)
        # One that came when the first had ended finds nothing to do: no step is there twice.
        self.assertEqual([row["step"] for row in self.metrics("run")], list(range(1, 301)))

    def test_the_directory_of_a_killed_job_is_free(self):
        process = self.begin("run")
        self.wait_for_save(process, "run")
        kill_all(process)
        self.train("run", "--resume", "auto", "--max-steps", 1, settings=ENDLESS)
        self.assertFalse((self.directory / "run" / ".lock").exists())


class Clock(Chaos):
    @unittest.skipUnless("JUMPING_CLOCK" in os.environ, "the library that makes the clock jump was not built")
    def test_a_time_of_day_that_jumps_changes_nothing(self):
        settings = ["checkpoint.every=10", "evaluation.every=20"]
        for processes in (0, 2):
            steady, jumping = f"steady{processes}", f"jumping{processes}"
            self.train(steady, processes=processes, settings=settings)
            command = self.command(jumping, "--resume", "auto", processes=processes, settings=settings)
            program = command.index(str(CHASKI))
            preload = f"LD_PRELOAD={os.environ['JUMPING_CLOCK']}"
            command[program:program] = ["env", preload]
            run([*command, "--max-steps", "55"])
            # Nor do the files' times say which checkpoint is the newest.
            for age, path in enumerate(sorted((self.directory / jumping / "checkpoints").iterdir())):
                os.utime(path, (10**9 - age * 10**7,) * 2)
            resumed = run(command)
            self.assertIn("step 55", resumed.stdout)
            self.assertEqual(self.losses(jumping), self.losses(steady))
            self.assertEqual(self.weights(jumping), self.weights(steady))
            for row in self.metrics(jumping):
                self.assertTrue(0 < row["seconds"] < 60, row)
                self.assertGreater(row["tokens_per_second"], 0)

    @unittest.skipUnless("JUMPING_CLOCK" in os.environ, "the library that makes the clock jump was not built")
    def test_the_clock_of_the_test_jumps(self):
        years = set()
        for _ in range(6):
            shown = run(["env", f"LD_PRELOAD={os.environ['JUMPING_CLOCK']}", "python3", "-c",
                         "import time; print({time.gmtime(time.time()).tm_year for _ in range(9)})"])
            years.add(shown.stdout)
        self.assertTrue(any("," in text for text in years), years)


class OneCore(Chaos):
    def test_one_core_gives_the_same_numbers(self):
        core = min(os.sched_getaffinity(0))
        for processes in (0, 2):
            several, one = f"several{processes}", f"one{processes}"
            self.train(several, "--max-steps", 30, processes=processes)
            command = self.command(one, "--max-steps", 30, processes=processes)
            # With as many threads as it finds cores for.
            done = run(["env", "-u", "OMP_NUM_THREADS", "taskset", "-c", str(core), *command])
            self.assertIn("1 thread a process", done.stdout)
            self.assertEqual(self.losses(one), self.losses(several))
            self.assertEqual(self.weights(one), self.weights(several))


if __name__ == "__main__":
    unittest.main(verbosity=2)
