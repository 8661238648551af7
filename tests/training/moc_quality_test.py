"""How good models become that use some channels of the FFN, after training that has come near what the text allows."""

import json
import math
import unittest

from harness import TrainingCase


class MocQuality(TrainingCase):
    WORDS = 200000
    STEPS = 1000
    # So wide that on CPUs of every instruction set only the kept channels' products are made.
    MODEL = ["model.hidden_size=64", "model.intermediate_size=176"]

    def perplexity(self, name, *settings):
        self.train(name, settings=[f"schedule.steps={self.STEPS}", "parallel.micro_batch=32", "parallel.global_batch=32",
                                   "evaluation.tokens=0", *self.MODEL, *settings])
        return math.exp(self.metrics(name)[-1]["validation_loss"])

    def test_against_the_dense_model(self):
        """arXiv 2511.09323: half of hidden_size channels cost little, fewer more, and selecting by |SiLU| more, too."""
        dense = self.perplexity("dense")
        kept = {keep: self.perplexity(f"keep-{keep}", "model.ffn=moc", f"model.moc.keep={keep}") for keep in (32, 8)}
        by_magnitude = self.perplexity("silu", "model.ffn=moc", "model.moc.selection=silu-magnitude")
        found = json.dumps({"dense": dense, **kept, "by |SiLU|": by_magnitude})
        print(found)
        self.assertLess(kept[32], 1.015 * dense, found)
        self.assertGreater(kept[8], 1.003 * kept[32], found)
        self.assertGreater(by_magnitude, 1.003 * kept[32], found)


if __name__ == "__main__":
    unittest.main()
