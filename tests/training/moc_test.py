"""Models of which each token uses some channels of the FFN: trained, saved, turned into each other."""

import json
import unittest

from harness import CHASKI, TrainingCase, run

# Of tests' 88 channels.
MOC = ["model.ffn=moc", "model.moc.keep=20"]
OF_EIGHT = ["model.ffn=moc", "model.moc.pattern=2:8"]


class Moc(TrainingCase):
    STEPS = 30

    def train_moc(self, name, *arguments, settings=(), moc=MOC, **options):
        return self.train(name, "--max-steps", self.STEPS, *arguments, settings=[*moc, *settings], **options)

    def assert_close(self, name, reference, tolerance=1e-4):
        """Sums in another order move a gate across the threshold now and then: less close than dense runs."""
        losses, expected = self.losses(name), self.losses(reference)
        self.assertEqual(len(losses), self.STEPS)
        for step, (loss, other) in enumerate(zip(losses, expected), start=1):
            self.assertLessEqual(abs(loss - other), tolerance * abs(other), f"{name}, step {step}")

    def test_it_learns_and_selects(self):
        for name, settings in (("topk", MOC), ("of_eight", OF_EIGHT), ("silu", [*MOC, "model.moc.selection=silu-magnitude"])):
            self.train_moc(name, moc=settings)
            self.assertLess(self.losses(name)[-1], self.losses(name)[0] - 0.7, name)
        self.train_moc("dense", moc=[])
        self.train_moc("all", moc=["model.ffn=moc", "model.moc.keep=1.0"])
        self.assertEqual(self.losses("all"), self.losses("dense"))
        self.assertEqual(self.weights("all"), self.weights("dense"))
        different = {tuple(self.losses(name)) for name in ("dense", "topk", "of_eight", "silu")}
        self.assertEqual(len(different), 4)

    def test_layouts_and_what_is_recomputed_change_nothing(self):
        self.train_moc("whole")
        for recompute in ("none", "block"):
            self.train_moc(recompute, settings=[f"model.recompute={recompute}"])
            self.assertEqual(self.weights(recompute), self.weights("whole"))
        self.train_moc("uint16", settings=["model.moc.index=uint16"])
        self.assertEqual(self.weights("uint16"), self.weights("whole"))
        self.train_moc("replicas", processes=2)
        self.assert_close("replicas", "whole")
        self.train_moc("stages", processes=2, settings=["parallel.pipeline=2"])
        self.assert_close("stages", "whole")

    def test_resumed_in_another_layout(self):
        self.train_moc("straight")
        self.train("cut", "--max-steps", 12, settings=MOC)
        self.train("cut", "--max-steps", self.STEPS - 12, "--resume", "auto", processes=2,
                   settings=[*MOC, "parallel.pipeline=2"])
        self.assert_close("cut", "straight")
        done = self.train("cut", "--resume", "auto", check=False)
        self.assert_one_error(done, 2, "another model: model.ffn is FFN 20 of 88 channels (topk)", "wants FFN 88")
        done = self.train("new", "--init-from", self.directory / "cut", "--max-steps", 1)
        self.assertIn("goes on with FFN 88", done.stderr)

    def test_channels_are_reported(self):
        done = self.train_moc("run", settings=["log.every=10", "log.dead_channel_steps=10"], processes=2)
        self.assertIn("channels: ", done.stdout)
        reports = {row["step"]: row["channels"] for row in self.metrics("run") if "channels" in row}
        self.assertEqual(sorted(reports), [1, 10, 20, 30])
        for step, report in reports.items():
            self.assertEqual("overlap" in report, step > 1)
            for layer in report["positive_share"] + report.get("overlap", []):
                self.assertGreater(layer, 0.3)
                self.assertLessEqual(layer, 1.0 + 1e-12)
        stages = self.train_moc("stages", processes=2,
                                settings=["log.every=10", "log.dead_channel_steps=10", "parallel.pipeline=2"])
        other = [row["channels"] for row in self.metrics("stages") if "channels" in row]
        self.assertEqual(other[0]["positive_share"], reports[1]["positive_share"], "sums over replicas and stages")
        self.assertIn("as planned", stages.stdout)
        # Each step by itself: every step makes as many selections, so that shares over several are means.
        most = ["model.ffn=moc", "model.moc.keep=60"]  # so many that negative gates are among them
        self.train_moc("ten", moc=most, settings=["log.every=10"])
        self.train_moc("each", moc=most, settings=["log.every=1"])
        each = [row["channels"]["positive_share"] for row in self.metrics("each")]
        ten = {row["step"]: row["channels"] for row in self.metrics("ten") if "channels" in row}
        for first, last in ((2, 10), (11, 20), (21, 30)):
            for layer, share in enumerate(ten[last]["positive_share"]):
                shares = [each[step - 1][layer] for step in range(first, last + 1)]
                self.assertAlmostEqual(share, sum(shares) / len(shares), places=9)
                self.assertLess(share, 0.99)
        # One of 88 channels, and weights so large that the first layer's choice hardly moves.
        self.train_moc("few", moc=["model.ffn=moc", "model.moc.keep=1"],
                       settings=["log.every=10", "log.dead_channel_steps=10", "model.initializer_range=2"])
        self.assertGreater(max(self.metrics("few")[-1]["channels"]["dead_channels"]), 0)

    def perplexity(self, checkpoint):
        shown = run([CHASKI, "eval", "--checkpoint", checkpoint, "--data", self.workplace.data,
                     "--sequence-length", "32", "--json"])
        return json.loads(shown.stdout)["perplexity"]

    def test_turned_from_dense_and_back(self):
        self.train("dense", "--max-steps", self.STEPS)
        path = self.directory
        run([CHASKI, "export", "--checkpoint", path / "dense", "--out", path / "folder"])
        imported = run([CHASKI, "import", path / "folder", "--out", path / "moc", "--set", "model.ffn=moc",
                        "--set", "model.moc.keep=0.5"])
        self.assertIn("was trained with FFN 88: it is of no use with FFN 44 of 88 channels (topk)", imported.stderr)
        exported = run([CHASKI, "export", "--checkpoint", path / "moc", "--out", path / "moc_folder"])
        self.assertIn("other programs run this model dense", exported.stderr)
        config = json.loads((path / "moc_folder" / "config.json").read_text())
        self.assertEqual(config["mixture_of_channels"], {"keep": 44, "pattern": "topk", "selection": "gate"})
        again = run([CHASKI, "import", path / "moc_folder", "--out", path / "again"])
        self.assertNotIn("warning", again.stderr)
        run([CHASKI, "import", path / "folder", "--out", path / "all", "--set", "model.ffn=moc",
             "--set", "model.moc.keep=1.0"])
        exported = run([CHASKI, "export", "--checkpoint", path / "all", "--out", path / "all_folder"])
        self.assertNotIn("warning", exported.stderr)  # all channels: others run the same
        run([CHASKI, "import", path / "moc_folder", "--out", path / "back", "--set", "model.ffn=swiglu"])
        dense, moc = self.perplexity(path / "dense"), self.perplexity(path / "moc")
        self.assertEqual(self.perplexity(path / "again"), moc)
        self.assertEqual(self.perplexity(path / "back"), dense)
        self.assertNotEqual(moc, dense)
        # It goes on, and gets used to it.
        self.train_moc("tuned", "--init-from", path / "moc", moc=["model.ffn=moc", "model.moc.keep=44"])
        self.assertLess(self.perplexity(path / "tuned"), moc)
        self.check_refused_imports(path / "folder", path / "none")
        self.check_kinds_survive(path / "moc_folder")

    def check_refused_imports(self, folder, out):
        moc = "model.ffn=moc"
        for settings, parts in (
                (["model.num_layers=3"], ["--set model.num_layers=3: only model.ffn and the keys of [model.moc]"]),
                (["optimizer.lr=1"], ["--set optimizer.lr=1: only model.ffn"]),
                ([moc, "model.moc.keep=89"], ["--set model.moc.keep=89: model.moc.keep = 89",
                                              "between 1 and model.intermediate_size = 88"]),
                ([moc, "model.moc.keep=some"], ['model.moc.keep is the string "some" but must be a count or a share']),
                ([moc, "model.moc.keep=0"], ["model.moc.keep is 0 but must be a count of at least 1"]),
                ([moc, "model.moc.index=bitmap"], ["--set model.moc.index=bitmap: a checkpoint does not hold"]),
                ([moc, "model.moc.kep=9"], ["--set model.moc.kep=9: unknown key model.moc.kep"]),
                ([moc, "model.moc.keep"], ["--set model.moc.keep: "]),
                (["model.moc.keep=9"], ['model.moc.keep has no effect with model.ffn = "swiglu"']),
                (["model.ffn=relu"], ['model.ffn is "relu" but must be one of "swiglu", "moc"'])):
            arguments = [part for setting in settings for part in ("--set", setting)]
            done = run([CHASKI, "import", folder, "--out", out, *arguments], check=False)
            self.assert_one_error(done, 2, *parts)
        self.assertFalse(out.exists())

    def check_kinds_survive(self, folder):
        """What a folder says is the model's, but for what --set changes of it."""
        path = self.directory

        def imported(source, name, *settings):
            arguments = [part for setting in settings for part in ("--set", setting)]
            run([CHASKI, "import", source, "--out", path / name, *arguments])
            shown = json.loads(run([CHASKI, "inspect", path / name, "--json"]).stdout)
            return shown["model"]["moc"]

        other = {"keep": 44, "pattern": "topk", "selection": "silu-magnitude"}
        self.assertEqual(imported(folder, "silu", "model.moc.selection=silu-magnitude"), other)
        run([CHASKI, "export", "--checkpoint", path / "silu", "--out", path / "silu_folder"])
        self.assertEqual(imported(path / "silu_folder", "silu_again"), other)
        # Another pattern keeps what it does, not what the folder says.
        other = {"keep": 22, "pattern": "2:8", "selection": "silu-magnitude"}
        self.assertEqual(imported(path / "silu_folder", "eight", "model.moc.pattern=2:8"), other)
        run([CHASKI, "export", "--checkpoint", path / "eight", "--out", path / "eight_folder"])
        # Saying again what the folder says changes nothing else of it.
        self.assertEqual(imported(path / "eight_folder", "eight_moc", "model.ffn=moc"), other)
        fewer = {"keep": 40, "pattern": "topk", "selection": "silu-magnitude"}
        self.assertEqual(imported(path / "silu_folder", "fewer", "model.ffn=moc", "model.moc.keep=40"), fewer)
        run([CHASKI, "export", "--checkpoint", path / "fewer", "--out", path / "fewer_folder"])
        self.assertEqual(imported(path / "fewer_folder", "topk", "model.moc.pattern=topk"), fewer)
        self.assertEqual(imported(path / "eight_folder", "eight_again"), other)
        self.assertEqual(self.weight_checksums("eight_again"), self.weight_checksums("eight"))

    def weight_checksums(self, name):
        return {key: value for key, value in self.weights(name).items() if key.startswith("weights/")}

    def test_plans_show_what_indices_take(self):
        """Two bytes a kept channel, or a bit for each channel, which is less here; of a dense model, what they would."""
        config = self.directory / "plan.toml"
        config.write_text("[data]\ntrain = \"nowhere.h5\"\nsequence_length = 256\n")
        for ffn, used in (("moc", "bitmap"), ("swiglu", None)):
            shown = run([CHASKI, "plan", config, "--set", "model.preset=llama-60m", "--set", f"model.ffn={ffn}",
                         "--no-measure"]).stdout
            for index, size in (("uint16", 2 * 256), ("bitmap", 1376 // 8)):
                take = "* indices take" if index == used else "  indices would take"
                self.assertIn(f'\n{take} {size} B of a token and layer with model.moc.index = "{index}"\n', shown)

    def test_plans_compare_feed_forward_networks(self):
        config = self.directory / "plan.toml"
        config.write_text("[data]\ntrain = \"nowhere.h5\"\nsequence_length = 256\n[schedule]\nsteps = 1\n")
        arguments = ["--set", "model.preset=llama-60m", "--set", "model.ffn=moc", "--set", "model.moc.index=uint16",
                     "--set", "device.backend=cuda", "--device-memory", "80GiB", "--no-measure", "--json"]
        plan = json.loads(run([CHASKI, "plan", config, *arguments]).stdout)
        choices = {(choice["ffn"], choice["recompute"]): choice for choice in plan["ffn_choices"]}
        kept = {name: choice["bytes_per_token_and_layer"] for name, choice in choices.items()}
        # bf16: 8 and 4 bytes a channel; 10 and 6 a kept one.
        self.assertEqual(kept, {("swiglu", "none"): 8 * 1376, ("swiglu", "elementwise"): 4 * 1376,
                                ("swiglu", "block"): 0, ("moc", "none"): 10 * 256,
                                ("moc", "elementwise"): 6 * 256, ("moc", "block"): 0})
        tokens, layers = 8 * 256, 8
        activations = {name: choice["activation_bytes"] for name, choice in choices.items()}
        counts = -(-layers * (1376 + 1) * 4 // 64) * 64
        self.assertEqual(activations["swiglu", "none"] - activations["moc", "none"],
                         2 * tokens * layers * (4 * 1376 - 5 * 256) - counts)
        self.assertEqual(activations["moc", "none"] - activations["moc", "elementwise"], 4 * tokens * layers * 256)


if __name__ == "__main__":
    unittest.main()
