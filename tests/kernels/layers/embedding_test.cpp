#include "kernels/layers/embedding.h"

#include "tests/kernels/devices.h"

namespace chaski {
namespace {

using test::Values;

std::vector<std::int32_t> random_tokens(std::int64_t count, std::int32_t vocab_size) {
  std::mt19937 generator(17);
  std::uniform_int_distribution<std::int32_t> uniform(0, vocab_size - 1);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
  for (std::int32_t& token : tokens) token = uniform(generator);
  return tokens;
}

class EmbeddingTest : public test::OpTest {};

TEST_P(EmbeddingTest, ForwardCopiesRows) {
  for (const std::int64_t hidden : {1, 3, 17, 24, 1000}) {
    constexpr std::int32_t kVocab = 11;
    const Values table = as_held(test::random_values(kVocab * hidden, 1));
    const std::vector<std::int32_t> tokens = random_tokens(29, kVocab);
    const Tensor out = poisoned_activations({29, hidden});
    embedding_forward(activations({kVocab, hidden}, table), integers(tokens), out);
    const Values result = values(out);
    const Tensor again = poisoned_activations({29, hidden});
    embedding_forward(shifted_activations({kVocab, hidden}, table), integers(tokens), again);
    EXPECT_TRUE(test::same_bits(values(again), result));
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      for (std::int64_t i = 0; i < hidden; ++i)
        ASSERT_EQ(result[t * hidden + i], table[tokens[t] * hidden + i]);
    }
  }
}

// The order of additions is part of the contract, so the plain loop gives the same bits; a bf16
// table is rounded once, at the end.
TEST_P(EmbeddingTest, BackwardAddsInTheOrderOfTokens) {
  struct Case {
    std::int64_t num_tokens;
    std::int64_t hidden;
  };
  constexpr std::int32_t kVocab = 5;
  for (const auto& [num_tokens, hidden] :
       {Case{101, 1}, Case{101, 3}, Case{101, 17}, Case{101, 24}, Case{37, 1000}, Case{1500, 8}}) {
    const Values dout = as_held(test::random_values(num_tokens * hidden, 2));
    const std::vector<std::int32_t> tokens = random_tokens(num_tokens, kVocab);
    const Values before = as_held(test::random_values(kVocab * hidden, 3));
    Values expected = before;
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      for (std::int64_t i = 0; i < hidden; ++i)
        expected[tokens[t] * hidden + i] += dout[t * hidden + i];
    }
    for (const DType type : weight_gradient_types()) {
      const Tensor dtable = weight_gradient({kVocab, hidden}, before, type);
      embedding_backward(activations({num_tokens, hidden}, dout), integers(tokens), dtable);
      EXPECT_TRUE(
          test::same_bits(values(dtable), type == DType::bf16 ? as_held(expected) : expected))
          << hidden << " " << name_of(type);
    }
  }
}

TEST_P(EmbeddingTest, DoesNotDependOnTheNumberOfThreads) {
  expect_same_for_any_threads([&] {
    const std::int64_t count = on_cpu() ? 1000 : 100;
    const std::vector<std::int32_t> tokens = random_tokens(count, 7);
    const Tensor dtable = activations({7, 77}, Values(7 * 77));
    const Tensor dout = activations({count, 77}, test::random_values(count * 77, 4));
    embedding_backward(dout, integers(tokens), dtable);
    const Tensor out = poisoned_activations({count, 77});
    embedding_forward(dtable, integers(tokens), out);
    return values(out);
  });
}

TEST_P(EmbeddingTest, ATokenOutsideTheVocabularyIsNotANumberOnAGpu) {
  if (on_cpu()) GTEST_SKIP() << "the CPU throws";
  const Values ones(40, 1.0f);
  for (const std::int32_t wrong : {-1, 10, 1 << 30}) {
    const Tensor out = activations({3, 4}, Values(12));
    embedding_forward(activations({10, 4}, ones), integers({3, wrong, 9}), out);
    const Values result = values(out);
    for (std::size_t i = 0; i < result.size(); ++i) EXPECT_EQ(std::isnan(result[i]), i / 4 == 1);
    const Tensor dtable = tensor({10, 4}, ones);
    embedding_backward(activations({3, 4}, Values(12, 2.0f)), integers({3, wrong, 3}), dtable);
    Values expected = ones;
    for (std::size_t i = 12; i < 16; ++i) expected[i] = 5.0f;
    EXPECT_EQ(values(dtable), expected);
  }
}

TEST_P(EmbeddingTest, RefusesATokenOutsideTheVocabulary) {
  const Tensor table = zeros({10, 4});
  EXPECT_THROW(embedding_forward(table, integers({3}), zeros({2, 4})), std::invalid_argument);
  EXPECT_THROW(embedding_forward(table, integers({3}), zeros({1, 5})), std::invalid_argument);
  EXPECT_THROW(embedding_forward(table, zeros({1}), zeros({1, 4})), std::invalid_argument);
  if (!on_cpu()) return;
  for (const std::int32_t wrong : {-1, 10}) {
    try {
      embedding_forward(table, integers({3, wrong}), zeros({2, 4}));
      FAIL() << "token " << wrong << " was accepted";
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(std::string(error.what()).find(std::to_string(wrong)), std::string::npos);
    }
    EXPECT_THROW(embedding_backward(zeros({2, 4}), integers({3, wrong}), table),
                 std::invalid_argument);
  }
}

CHASKI_ON_ALL_DEVICES(EmbeddingTest);

}  // namespace
}  // namespace chaski
