"""How good models become that use some channels of the FFN, after training that has come near what the text allows."""

import json
import math
import unittest

from harness import TrainingCase


class MocQuality(TrainingCase):
    WORDS = 200000
    STEPS = 1000
    # So wide that on CPUs of every instruction set only the kept channels' products are made.
    MODEL = ["device.backend=cpu", "model.hidden_size=64", "model.intermediate_size=176"]

    def perplexity(self, name, *settings):
        self.train(name, settings=[f"schedule.steps={self.STEPS}", "parallel.micro_batch=32",
                                   "parallel.global_batch=32", "evaluation.tokens=0", *self.MODEL, *settings])
        return math.exp(self.metrics(name)[-1]["validation_loss"])

    def test_against_the_dense_model(self):
        """arXiv 2511.09323: half of hidden_size channels cost little, few more. Runs that differ in rounding alone are
        0.3 % apart."""
        dense = self.perplexity("dense")
        half, few = (self.perplexity(f"keep-{keep}", "model.ffn=moc", f"model.moc.keep={keep}") for keep in (32, 1))
        found = json.dumps({"dense": dense, "32 channels": half, "1 channel": few})
        print(found)
        self.assertLess(half, 1.015 * dense, found)
        self.assertGreater(few, 1.01 * half, found)


if __name__ == "__main__":
    unittest.main()
