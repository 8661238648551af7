#include "kernels/embedding.h"

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
  for (const std::int64_t hidden : {1, 3, 17, 1000}) {
    constexpr std::int32_t kVocab = 11;
    const Values table = test::random_values(kVocab * hidden, 1);
    const std::vector<std::int32_t> tokens = random_tokens(29, kVocab);
    const Tensor out = zeros({29, hidden});
    embedding_forward(tensor({kVocab, hidden}, table), integers(tokens), out);
    const Values result = values(out);
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      for (std::int64_t i = 0; i < hidden; ++i)
        ASSERT_EQ(result[t * hidden + i], table[tokens[t] * hidden + i]);
    }
  }
}

// The order of additions is part of the contract, so the plain loop gives the same bits.
TEST_P(EmbeddingTest, BackwardAddsInTheOrderOfTokens) {
  for (const std::int64_t hidden : {1, 3, 17, 1000}) {
    constexpr std::int32_t kVocab = 5;
    constexpr std::int64_t kTokens = 101;
    const Values dout = test::random_values(kTokens * hidden, 2);
    Values expected = test::random_values(kVocab * hidden, 3);
    const std::vector<std::int32_t> tokens = random_tokens(kTokens, kVocab);
    const Tensor dtable = tensor({kVocab, hidden}, expected);
    embedding_backward(tensor({kTokens, hidden}, dout), integers(tokens), dtable);
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      for (std::int64_t i = 0; i < hidden; ++i)
        expected[tokens[t] * hidden + i] += dout[t * hidden + i];
    }
    EXPECT_TRUE(test::same_bits(values(dtable), expected)) << hidden;
  }
}

TEST_P(EmbeddingTest, DoesNotDependOnTheNumberOfThreads) {
  expect_same_for_any_threads([&] {
    const std::vector<std::int32_t> tokens = random_tokens(1000, 7);
    const Tensor dtable = zeros({7, 77});
    embedding_backward(tensor({1000, 77}, test::random_values(77000, 4)), integers(tokens), dtable);
    const Tensor out = zeros({1000, 77});
    embedding_forward(dtable, integers(tokens), out);
    return values(out);
  });
}

TEST_P(EmbeddingTest, RefusesATokenOutsideTheVocabulary) {
  const Tensor table = zeros({10, 4});
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
  EXPECT_THROW(embedding_forward(table, integers({3}), zeros({2, 4})), std::invalid_argument);
  EXPECT_THROW(embedding_forward(table, integers({3}), zeros({1, 5})), std::invalid_argument);
  EXPECT_THROW(embedding_forward(table, zeros({1}), zeros({1, 4})), std::invalid_argument);
}

CHASKI_ON_ALL_DEVICES(EmbeddingTest);

}  // namespace
}  // namespace chaski
