#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "data/corpus_reader.h"
#include "data/tokenizer.h"

namespace chaski {

enum class TokenizerType { bpe, unigram };

struct TokenizerTraining {
  TokenizerType type = TokenizerType::bpe;
  std::int32_t vocab_size = 0;
  double character_coverage = 0.9995;  // of the text by characters that get their own token
  // At most about this much text is learned from; of more, lines are drawn evenly.
  std::uint64_t sample_bytes = 64 << 20;
  std::uint64_t seed = 0;  // of that draw
  int threads = 16;        // a unigram model depends on it in its last digits
};

struct TokenizerTrainingReport {
  CorpusCounts corpus;
  std::uint64_t sampled_bytes = 0;
};

// Trains a lossless SentencePiece model (byte fallback, no normalisation; unk 0, BOS 1, EOS 2;
// digits apart; runs of spaces may be pieces; a line end is the byte token <0x0A>) on the corpus.
// `on_progress` is called with the bytes read, and with UINT64_MAX when learning begins.
//
// Throws std::invalid_argument for a vocabulary that the corpus cannot fill or that is too small
// for its characters, and for an empty corpus; std::runtime_error as CorpusReader.
std::shared_ptr<const Tokenizer> train_tokenizer(
    CorpusReader& corpus, const TokenizerTraining& training, TokenizerTrainingReport& report,
    const std::function<void(std::uint64_t)>& on_progress = {});

}  // namespace chaski
