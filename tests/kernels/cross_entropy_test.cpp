#include "kernels/cross_entropy.h"

#include <limits>

#include "kernels/elementwise.h"
#include "tests/kernels/devices.h"

namespace chaski {
namespace {

using test::Reference;
using test::Values;
using Targets = std::vector<std::int32_t>;

struct Sizes {
  std::int64_t tokens;
  std::int64_t hidden;
  std::int64_t vocab;
};

// Negative log likelihoods, plainly.
Reference reference_losses(const Reference& hidden, const Reference& weight, const Targets& targets,
                           Sizes sizes) {
  Reference losses;
  for (std::int64_t t = 0; t < sizes.tokens; ++t) {
    Reference logits(static_cast<std::size_t>(sizes.vocab));
    for (std::int64_t v = 0; v < sizes.vocab; ++v) {
      for (std::int64_t i = 0; i < sizes.hidden; ++i)
        logits[v] += hidden[t * sizes.hidden + i] * weight[v * sizes.hidden + i];
    }
    const double largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0.0;
    for (const double logit : logits) sum += std::exp(logit - largest);
    losses.push_back(targets[t] < 0 ? 0.0 : std::log(sum) + largest - logits[targets[t]]);
  }
  return losses;
}

double total(const Reference& losses) {
  double sum = 0.0;
  for (const double loss : losses) sum += loss;
  return sum;
}

Targets random_targets(Sizes sizes) {
  std::mt19937 generator(3);
  std::uniform_int_distribution<std::int32_t> uniform(0,
                                                      static_cast<std::int32_t>(sizes.vocab) - 1);
  Targets targets;
  for (std::int64_t t = 0; t < sizes.tokens; ++t)
    targets.push_back(t % 5 == 3 ? kIgnoredTarget : uniform(generator));
  return targets;
}

class HeadLossTest : public test::OpTest {
 protected:
  HeadLoss make_head(Sizes sizes, const Values& hidden, const Values& weight,
                     const Targets& targets, std::int64_t chunk) {
    return {.hidden = tensor({sizes.tokens, sizes.hidden}, hidden),
            .weight = tensor({sizes.vocab, sizes.hidden}, weight),
            .targets = integers(targets),
            .losses = tensor({sizes.tokens}, Values(static_cast<std::size_t>(sizes.tokens), 9.0f)),
            .chunk = chunk};
  }
};

TEST_P(HeadLossTest, LossesMatchTheFormula) {
  const Sizes all_sizes[] = {{1, 1, 1}, {3, 17, 3}, {17, 3, 1000}, {33, 8, 5003}, {2, 4, 300017}};
  for (const Sizes sizes : all_sizes) {
    const Values hidden = test::random_values(sizes.tokens * sizes.hidden, 1, 2.0f);
    const Values weight = test::random_values(sizes.vocab * sizes.hidden, 2, 2.0f);
    const Targets targets = random_targets(sizes);
    const Reference expected =
        reference_losses(test::widen(hidden), test::widen(weight), targets, sizes);
    for (const std::int64_t chunk : {1, 5, 512}) {
      const HeadLoss head = make_head(sizes, hidden, weight, targets, chunk);
      head_loss_forward(head);
      test::expect_close(values(head.losses), expected, 1e-6, "losses");
      fill(head.losses, 9.0f);
      head_loss_forward_backward(head, 1.0f, zeros({sizes.tokens, sizes.hidden}), Tensor());
      test::expect_close(values(head.losses), expected, 1e-6, "losses of forward_backward");
    }
  }
}

TEST_P(HeadLossTest, GradientsMatchFiniteDifferences) {
  for (const Sizes sizes : {Sizes{1, 1, 1}, Sizes{3, 17, 3}, Sizes{11, 5, 37}}) {
    constexpr float kScale = 0.25f;
    const Values hidden = test::random_values(sizes.tokens * sizes.hidden, 3);
    const Values weight = test::random_values(sizes.vocab * sizes.hidden, 4);
    const Values dweight_before = test::random_values(sizes.vocab * sizes.hidden, 5);
    const Targets targets = random_targets(sizes);
    const Reference expected_dhidden = test::central_differences(
        [&](const Reference& at) {
          return kScale * total(reference_losses(at, test::widen(weight), targets, sizes));
        },
        test::widen(hidden));
    Reference expected_dweight = test::central_differences(
        [&](const Reference& at) {
          return kScale * total(reference_losses(test::widen(hidden), at, targets, sizes));
        },
        test::widen(weight));
    for (std::size_t i = 0; i < expected_dweight.size(); ++i)
      expected_dweight[i] += dweight_before[i];
    for (const std::int64_t chunk : {4, 512}) {
      const HeadLoss head = make_head(sizes, hidden, weight, targets, chunk);
      const Tensor dhidden = tensor({sizes.tokens, sizes.hidden}, Values(hidden.size(), 9.0f));
      const Tensor dweight = tensor({sizes.vocab, sizes.hidden}, dweight_before);
      head_loss_forward_backward(head, kScale, dhidden, dweight);
      test::expect_close(values(dhidden), expected_dhidden, 2e-6, "dhidden");
      test::expect_close(values(dweight), expected_dweight, 2e-6, "dweight");
    }
  }
}

// With the identity as hidden states the logits are the weight's transpose: any logits can be
// given.
TEST_P(HeadLossTest, ExtremeLogits) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  struct Case {
    float logit;  // of the target
    float others;
    double loss;  // of the target
  };
  const Case cases[] = {{1e4f, -1e4f, 0.0},
                        {-1e4f, 1e4f, 2e4 + std::log(4099.0)},
                        {88.0f, 88.0f, std::log(4100.0)},
                        {-3e4f, -3e4f, std::log(4100.0)}};
  constexpr std::int64_t kVocab = 4100;
  for (const Case& c : cases) {
    for (const std::int32_t target : {1, 4099}) {  // in the first and in the last block of a row
      Values weight(kVocab, c.others);
      weight[target] = c.logit;
      const HeadLoss head = make_head({1, 1, kVocab}, {1.0f}, weight, {target}, 512);
      head_loss_forward_backward(head, 1.0f, zeros({1, 1}), zeros({kVocab, 1}));
      EXPECT_NEAR(values(head.losses)[0], c.loss, 1e-6 * c.loss + 1e-6);
      head_loss_forward(head);
      EXPECT_NEAR(values(head.losses)[0], c.loss, 1e-6 * c.loss + 1e-6);
    }
  }
  // A whole block of -inf counts for nothing; NaN and +inf are seen.
  Values weight(kVocab, -kInfinity);
  weight[1] = -200.0f;
  const HeadLoss masked = make_head({1, 1, kVocab}, {1.0f}, weight, {1}, 512);
  head_loss_forward(masked);
  EXPECT_NEAR(values(masked.losses)[0], 0.0, 1e-6);
  for (const float bad : {kInfinity, std::nanf("")}) {
    Values broken(kVocab, 0.0f);
    broken[4000] = bad;
    const HeadLoss head = make_head({1, 1, kVocab}, {1.0f}, broken, {1}, 512);
    head_loss_forward(head);
    EXPECT_FALSE(std::isfinite(values(head.losses)[0]));
    head_loss_forward_backward(head, 1.0f, zeros({1, 1}), Tensor());
    EXPECT_FALSE(std::isfinite(values(head.losses)[0]));
  }
}

TEST_P(HeadLossTest, AllIgnoredGivesZeros) {
  const Sizes sizes = {7, 4, 50};
  const HeadLoss head = make_head(sizes, test::random_values(28, 6), test::random_values(200, 7),
                                  Targets(7, kIgnoredTarget), 3);
  const Tensor dhidden = tensor({7, 4}, Values(28, 9.0f));
  const Tensor dweight = zeros({50, 4});
  head_loss_forward_backward(head, 1.0f, dhidden, dweight);
  EXPECT_EQ(values(head.losses), Values(7, 0.0f));
  EXPECT_EQ(values(dhidden), Values(28, 0.0f));
  EXPECT_EQ(values(dweight), Values(200, 0.0f));
  fill(head.losses, 9.0f);
  head_loss_forward(head);
  EXPECT_EQ(values(head.losses), Values(7, 0.0f));
}

TEST_P(HeadLossTest, TakesOneChunkOfLogitsFromTheWorkspace) {
  const Sizes sizes = {600, 4, 3001};
  const HeadLoss head = make_head(sizes, test::random_values(2400, 8),
                                  test::random_values(12004, 9), random_targets(sizes), 128);
  const Tensor dhidden = zeros({600, 4});
  const Tensor dweight = zeros({3001, 4});
  head_loss_forward_backward(head, 1.0f, dhidden, dweight);
  const std::int64_t logits_bytes = 128 * 3001 * 4;
  EXPECT_GE(device().memory().current(MemoryCategory::workspace), logits_bytes);
  EXPECT_LE(device().memory().current(MemoryCategory::workspace), 2 * logits_bytes);
  const std::int64_t allocations = device().num_allocations();
  head_loss_forward_backward(head, 1.0f, dhidden, dweight);
  EXPECT_EQ(device().num_allocations(), allocations);
}

TEST_P(HeadLossTest, RefusesTargetsAndShapesThatDoNotFit) {
  const Sizes sizes = {2, 3, 10};
  const Values hidden(6, 0.5f);
  const Values weight(30, 0.5f);
  for (const std::int32_t wrong : {-2, 10, 32000}) {
    const HeadLoss head = make_head(sizes, hidden, weight, {1, wrong}, 512);
    try {
      head_loss_forward(head);
      FAIL() << "target " << wrong << " was accepted";
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(std::string(error.what()).find(std::to_string(wrong)), std::string::npos);
    }
  }
  HeadLoss head = make_head(sizes, hidden, weight, {1, 2}, 0);
  EXPECT_THROW(head_loss_forward(head), std::invalid_argument);
  head.chunk = 512;
  EXPECT_THROW(head_loss_forward_backward(head, 1.0f, zeros({2, 4}), Tensor()),
               std::invalid_argument);
  EXPECT_THROW(head_loss_forward_backward(head, 1.0f, head.hidden, Tensor()),
               std::invalid_argument);
  EXPECT_THROW(head_loss_forward_backward(head, 1.0f, zeros({2, 3}), zeros({10, 4})),
               std::invalid_argument);
  head.losses = zeros({3});
  EXPECT_THROW(head_loss_forward(head), std::invalid_argument);
  head = make_head(sizes, hidden, weight, {1, 2}, 512);
  head.weight = zeros({10, 4});
  EXPECT_THROW(head_loss_forward(head), std::invalid_argument);
}

CHASKI_ON_ALL_DEVICES(HeadLossTest);

}  // namespace
}  // namespace chaski
