#include "kernels/loss/cross_entropy.h"

#include <limits>

#include "kernels/elementwise/elementwise.h"
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
    return {.hidden = activations({sizes.tokens, sizes.hidden}, hidden),
            .weight = activations({sizes.vocab, sizes.hidden}, weight),
            .targets = integers(targets),
            .losses = tensor({sizes.tokens}, Values(static_cast<std::size_t>(sizes.tokens), 9.0f)),
            .chunk = chunk};
  }
  // Logits, and so losses, are fp32 everywhere.
  double loss_tolerance() const { return on_cpu() ? 1e-6 : 1e-5; }
};

TEST_P(HeadLossTest, LossesMatchTheFormula) {
  const std::int64_t longest = on_cpu() ? 300017 : 30017;
  const Sizes all_sizes[] = {{1, 1, 1},     {3, 17, 3},   {17, 3, 1000},
                             {33, 8, 5003}, {2, 4, 8200}, {2, 4, longest}};
  for (const Sizes sizes : all_sizes) {
    const Values hidden = as_held(test::random_values(sizes.tokens * sizes.hidden, 1, 2.0f));
    const Values weight = as_held(test::random_values(sizes.vocab * sizes.hidden, 2, 2.0f));
    const Targets targets = random_targets(sizes);
    const Reference expected =
        reference_losses(test::widen(hidden), test::widen(weight), targets, sizes);
    for (const std::int64_t chunk : {1, 5, 512}) {
      const HeadLoss head = make_head(sizes, hidden, weight, targets, chunk);
      head_loss_forward(head);
      test::expect_close(values(head.losses), expected, loss_tolerance(), "losses");
      fill(head.losses, 9.0f);
      head_loss_forward_backward(head, 1.0f, poisoned_activations({sizes.tokens, sizes.hidden}),
                                 Tensor());
      test::expect_close(values(head.losses), expected, loss_tolerance(),
                         "losses of forward_backward");
    }
  }
}

TEST_P(HeadLossTest, GradientsMatchFiniteDifferences) {
  for (const Sizes sizes : {Sizes{1, 1, 1}, Sizes{3, 17, 3}, Sizes{11, 5, 37}}) {
    constexpr float kScale = 0.25f;
    const Values hidden = as_held(test::random_values(sizes.tokens * sizes.hidden, 3));
    const Values weight = as_held(test::random_values(sizes.vocab * sizes.hidden, 4));
    const Values dweight_before = as_held(test::random_values(sizes.vocab * sizes.hidden, 5));
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
      for (const DType type : weight_gradient_types()) {
        const HeadLoss head = make_head(sizes, hidden, weight, targets, chunk);
        const Tensor dhidden = poisoned_activations({sizes.tokens, sizes.hidden});
        const Tensor dweight = weight_gradient({sizes.vocab, sizes.hidden}, dweight_before, type);
        head_loss_forward_backward(head, kScale, dhidden, dweight);
        test::expect_close(values(dhidden), expected_dhidden, tolerance(2e-6), "dhidden");
        test::expect_close(values(dweight), expected_dweight, tolerance(2e-6), "dweight");
      }
    }
  }
}

// Rows that a thread of a GPU goes through in several turns, with and without vectors.
TEST_P(HeadLossTest, GradientOfLongRows) {
  for (const Sizes sizes : {Sizes{5, 3, 9000}, Sizes{3, 3, 8199}}) {
    const Values hidden = as_held(test::random_values(sizes.tokens * sizes.hidden, 10));
    const Values weight = as_held(test::random_values(sizes.vocab * sizes.hidden, 11));
    const Targets targets = random_targets(sizes);
    Reference expected_dhidden(hidden.size());
    Reference expected_dweight(weight.size());
    for (std::int64_t t = 0; t < sizes.tokens; ++t) {
      if (targets[t] < 0) continue;
      Reference shares(static_cast<std::size_t>(sizes.vocab));
      double sum = 0.0;
      for (std::int64_t v = 0; v < sizes.vocab; ++v) {
        double logit = 0.0;
        for (std::int64_t i = 0; i < sizes.hidden; ++i)
          logit += static_cast<double>(hidden[t * sizes.hidden + i]) * weight[v * sizes.hidden + i];
        shares[v] = std::exp(logit);
        sum += shares[v];
      }
      for (std::int64_t v = 0; v < sizes.vocab; ++v) {
        const double slope = 2.0 * (shares[v] / sum - (v == targets[t] ? 1.0 : 0.0));
        for (std::int64_t i = 0; i < sizes.hidden; ++i) {
          expected_dhidden[t * sizes.hidden + i] += slope * weight[v * sizes.hidden + i];
          expected_dweight[v * sizes.hidden + i] += slope * hidden[t * sizes.hidden + i];
        }
      }
    }
    Values first;
    for (int run = 0; run < 2; ++run) {
      const HeadLoss head = make_head(sizes, hidden, weight, targets, 2);
      const Tensor dhidden = poisoned_activations({sizes.tokens, sizes.hidden});
      const Tensor dweight = zeros({sizes.vocab, sizes.hidden});
      head_loss_forward_backward(head, 2.0f, dhidden, dweight);
      test::expect_close(values(dhidden), expected_dhidden, tolerance(4e-6), "dhidden");
      test::expect_close(values(dweight), expected_dweight, tolerance(4e-6), "dweight");
      Values all = values(dweight);
      const Values losses = values(head.losses);
      all.insert(all.end(), losses.begin(), losses.end());
      EXPECT_TRUE(run == 0 || test::same_bits(all, first));
      first = all;
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
  };
  const Case cases[] = {{1e4f, -1e4f}, {-1e4f, 1e4f}, {88.0f, 88.0f}, {-3e4f, -3e4f}};
  constexpr std::int64_t kVocab = 4100;
  for (const Case& c : cases) {
    const Values held = as_held({c.logit, c.others});
    const double gap = static_cast<double>(held[1]) - held[0];
    const double loss = gap > 0.0 ? gap + std::log(kVocab - 1 + std::exp(-gap))
                                  : std::log1p((kVocab - 1) * std::exp(gap));
    for (const std::int32_t target : {1, 4099}) {  // in the first and in the last block of a row
      Values weight(kVocab, c.others);
      weight[target] = c.logit;
      const HeadLoss head = make_head({1, 1, kVocab}, {1.0f}, weight, {target}, 512);
      head_loss_forward_backward(head, 1.0f, poisoned_activations({1, 1}), zeros({kVocab, 1}));
      EXPECT_NEAR(values(head.losses)[0], loss, 1e-6 * loss + 1e-6);
      head_loss_forward(head);
      EXPECT_NEAR(values(head.losses)[0], loss, 1e-6 * loss + 1e-6);
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
    head_loss_forward_backward(head, 1.0f, poisoned_activations({1, 1}), Tensor());
    EXPECT_FALSE(std::isfinite(values(head.losses)[0]));
  }
}

TEST_P(HeadLossTest, AllIgnoredGivesZeros) {
  const Sizes sizes = {7, 4, 50};
  const HeadLoss head = make_head(sizes, test::random_values(28, 6), test::random_values(200, 7),
                                  Targets(7, kIgnoredTarget), 3);
  const Tensor dhidden = poisoned_activations({7, 4});
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
  const std::int64_t chunk = on_cpu() ? 128 : 11;
  const Sizes sizes = {on_cpu() ? 600 : 29, 4, 3001};
  const HeadLoss head = make_head(sizes, test::random_values(sizes.tokens * 4, 8),
                                  test::random_values(12004, 9), random_targets(sizes), chunk);
  const Tensor dhidden = poisoned_activations({sizes.tokens, 4});
  const Tensor dweight = zeros({3001, 4});
  head_loss_forward_backward(head, 1.0f, dhidden, dweight);
  const std::int64_t logits_bytes = chunk * 3001 * 4;
  EXPECT_GE(device().memory().current(MemoryCategory::workspace), logits_bytes);
  if (on_cpu()) {
    EXPECT_LE(device().memory().current(MemoryCategory::workspace), 2 * logits_bytes);
  }
  const std::int64_t allocations = device().num_allocations();
  head_loss_forward_backward(head, 1.0f, dhidden, dweight);
  EXPECT_EQ(device().num_allocations(), allocations);
}

TEST_P(HeadLossTest, ATargetOutsideTheVocabularyIsNotANumberOnAGpu) {
  if (on_cpu()) GTEST_SKIP() << "the CPU throws";
  const Sizes sizes = {3, 2, 12};
  for (const std::int32_t wrong : {-2, 12, 32000}) {
    const HeadLoss head = make_head(sizes, test::random_values(6, 12), test::random_values(24, 13),
                                    {1, wrong, kIgnoredTarget}, 512);
    const Tensor dhidden = activations({3, 2}, Values(6, 9.0f));
    head_loss_forward_backward(head, 1.0f, dhidden, Tensor());
    for (int pass = 0; pass < 2; ++pass) {
      const Values losses = values(head.losses);
      EXPECT_TRUE(std::isfinite(losses[0]));
      EXPECT_TRUE(std::isnan(losses[1]));
      EXPECT_EQ(losses[2], 0.0f);
      fill(head.losses, 9.0f);
      head_loss_forward(head);
    }
    const Values gradient = values(dhidden);
    for (std::size_t i = 0; i < gradient.size(); ++i)
      EXPECT_EQ(std::isnan(gradient[i]), i / 2 == 1) << i;
    EXPECT_EQ(gradient[4], 0.0f);
  }
}

TEST_P(HeadLossTest, RefusesTargetsAndShapesThatDoNotFit) {
  const Sizes sizes = {2, 3, 10};
  const Values hidden(6, 0.5f);
  const Values weight(30, 0.5f);
  for (const std::int32_t wrong : {-2, 10, 32000}) {
    if (!on_cpu()) break;
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
