// Logits of the decoder and its key-value cache against transformers' LLaMA run on whole sequences.

#include "model/decoder.h"

#include <algorithm>
#include <gtest/gtest.h>

#include "tests/parity/golden.h"

namespace chaski {
namespace {

// Tokens [begin, end) of a batch that attend to each other only.
struct Document {
  std::size_t begin;
  std::size_t end;
};

std::vector<Document> documents_of(const GoldenBatch& batch) {
  std::vector<Document> documents;
  for (std::size_t i = 0; i < batch.tokens.size(); ++i) {
    const auto position = batch.positions.empty()
                              ? static_cast<std::int64_t>(i) % batch.sequence_length
                              : batch.positions[i];
    if (position == 0) documents.push_back({i, i});
    documents.back().end = i + 1;
  }
  return documents;
}

class DecoderParity : public testing::TestWithParam<std::string> {
 protected:
  DecoderParity()
      : golden_(GetParam()),
        device_(parity_device(2)),
        stage_(*device_, golden_.config, stage_range(golden_.config, 0, 1),
               {.micro_batch = 1,
                .sequence_length = golden_.batch.sequence_length,
                .training = false}),
        decoder_(*device_, stage_, golden_.batch.sequence_length) {
    load_weights(golden_, stage_.parameters());
  }

  std::span<const std::int32_t> tokens(std::size_t begin, std::size_t end) const {
    return {golden_.batch.tokens.data() + begin, end - begin};
  }
  void expect_logits(const Tensor& actual, std::size_t begin, std::size_t end) const {
    const std::int64_t vocab_size = golden_.config.vocab_size;
    const std::vector<float> expected(golden_.logits.begin() + begin * vocab_size,
                                      golden_.logits.begin() + end * vocab_size);
    EXPECT_LE(relative_error(to_vector(actual), expected), 2e-5)
        << "tokens " << begin << " to " << end;
  }

  Golden golden_;
  std::unique_ptr<Device> device_;
  Stage stage_;
  Decoder decoder_;
};

TEST_P(DecoderParity, PromptAtOnceThenTokenByToken) {
  for (const Document& document : documents_of(golden_.batch)) {
    decoder_.rewind(0);
    const std::size_t prompt = document.begin + (document.end - document.begin + 1) / 2;
    expect_logits(decoder_.feed(tokens(document.begin, prompt), true), document.begin, prompt);
    for (std::size_t i = prompt; i < document.end; ++i) {
      expect_logits(decoder_.feed(tokens(i, i + 1)), i, i + 1);
    }
  }
}

TEST_P(DecoderParity, PromptInPieces) {
  for (const Document& document : documents_of(golden_.batch)) {
    decoder_.rewind(0);
    for (std::size_t begin = document.begin; begin < document.end; begin += 5) {
      const std::size_t end = std::min(begin + 5, document.end);
      expect_logits(decoder_.feed(tokens(begin, end)), end - 1, end);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, DecoderParity, testing::ValuesIn(Golden::names()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace chaski
