#include "data/tokenizer_training.h"

#include <algorithm>
#include <cctype>
#include <fmt/format.h>
#include <limits>
#include <optional>
#include <sentencepiece_trainer.h>
#include <stdexcept>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>
#include <xxhash.h>

#include "data/utf8.h"

namespace chaski {
namespace {

constexpr std::size_t kLongestLine = 4000;  // bytes; SentencePiece drops lines above 4192
constexpr std::int32_t kSmallestVocabulary = 256 + 3 + 1;

// An even sample of lines in bounded memory, without knowing how many there are: a line is kept
// when the hash of its number lies below a threshold, which falls whenever the sample is too big.
class LineSample {
 public:
  LineSample(std::uint64_t most_bytes, std::uint64_t seed) : most_bytes_(most_bytes), seed_(seed) {}

  void add(std::string_view line) {
    const std::uint64_t number = count_++;
    const std::uint64_t hash = XXH3_64bits_withSeed(&number, sizeof number, seed_);
    if (hash > threshold_) return;
    bytes_ += line.size();
    lines_.push_back({hash, std::string(line)});
    while (bytes_ > most_bytes_ && lines_.size() > 1) thin();
  }

  const std::vector<std::pair<std::uint64_t, std::string>>& lines() const { return lines_; }
  std::uint64_t bytes() const { return bytes_; }

 private:
  void thin() {
    threshold_ = threshold_ / 8 * 7;
    std::erase_if(lines_, [this](const auto& line) { return line.first > threshold_; });
    bytes_ = 0;
    for (const auto& line : lines_) bytes_ += line.second.size();
  }

  std::uint64_t most_bytes_;
  std::uint64_t seed_;
  std::uint64_t threshold_ = std::numeric_limits<std::uint64_t>::max();
  std::uint64_t count_ = 0;
  std::uint64_t bytes_ = 0;
  std::vector<std::pair<std::uint64_t, std::string>> lines_;  // with their hashes
};

// Cuts text into what the trainer can take: lines of bounded length without the characters that
// it reserves (NUL, tab, U+2047 and U+2581), which are encoded by their bytes.
void add_lines(std::string_view text, LineSample& sample) {
  const auto is_break = [&](std::size_t i) -> std::size_t {
    const char c = text[i];
    if (c == '\n' || c == '\0' || c == '\t' || c == '\r') return 1;
    if (c != '\xE2') return 0;
    const std::string_view here = text.substr(i, 3);
    return here == "\xE2\x81\x87" || here == "\xE2\x96\x81" ? 3 : 0;
  };
  std::size_t begin = 0;
  const auto add = [&](std::size_t end) {
    while (end > begin) {
      std::size_t length = end - begin;
      if (length > kLongestLine) {
        const std::string_view head = text.substr(begin, kLongestLine);
        const std::size_t space = head.rfind(' ');
        length = space != std::string_view::npos && space > kLongestLine / 2
                     ? space
                     : character_border(text.substr(begin, end - begin), kLongestLine);
      }
      sample.add(text.substr(begin, length));
      begin += length;
    }
  };
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (const std::size_t length = is_break(i)) {
      add(i);
      begin = i + length;
      i = begin - 1;
    }
  }
  add(text.size());
}

class SampleIterator : public sentencepiece::SentenceIterator {
 public:
  explicit SampleIterator(const LineSample& sample) : lines_(sample.lines()) {}
  bool done() const override { return position_ >= lines_.size(); }
  void Next() override { ++position_; }
  const std::string& value() const override { return lines_[position_].second; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::pair<std::uint64_t, std::string>>& lines_;
  std::size_t position_ = 0;
};

// The first number that follows `words` in `message`.
std::optional<long> number_after(const std::string& message, std::string_view words) {
  std::size_t at = message.find(words);
  if (at == std::string::npos) return std::nullopt;
  at += words.size();
  while (at < message.size() && !std::isdigit(static_cast<unsigned char>(message[at]))) ++at;
  if (at == message.size()) return std::nullopt;
  return std::stol(message.substr(at, 18));
}

[[noreturn]] void training_failed(const std::string& message, std::int32_t vocab_size) {
  if (const auto most = number_after(message, "value <=")) {
    throw std::invalid_argument(fmt::format(
        "--vocab-size {}: the corpus gives at most {} tokens\nhint: pass --vocab-size {} or less, "
        "or more text",
        vocab_size, *most, *most));
  }
  if (message.find("smaller than required_chars") != std::string::npos) {
    const auto least = number_after(message, " vs ");
    throw std::invalid_argument(
        fmt::format("--vocab-size {}: the characters of the corpus alone need {} tokens\n"
                    "hint: raise --vocab-size or lower --character-coverage",
                    vocab_size, least ? fmt::format("{}", *least) : "more"));
  }
  std::string line = message;
  std::replace(line.begin(), line.end(), '\n', ' ');
  throw std::runtime_error(fmt::format("the tokenizer cannot be trained: {}", line));
}

std::string flag(bool value) {
  return value ? "true" : "false";
}

std::string train_on(const LineSample& sample, const TokenizerTraining& training) {
  const std::unordered_map<std::string, std::string> arguments = {
      {"model_type", training.type == TokenizerType::bpe ? "bpe" : "unigram"},
      {"vocab_size", fmt::format("{}", training.vocab_size)},
      {"character_coverage", fmt::format("{}", training.character_coverage)},
      {"num_threads", fmt::format("{}", training.threads)},
      {"normalization_rule_name", "identity"},
      {"remove_extra_whitespaces", flag(false)},
      {"add_dummy_prefix", flag(false)},
      {"byte_fallback", flag(true)},
      {"split_digits", flag(true)},
      {"allow_whitespace_only_pieces", flag(true)},
      {"unk_id", "0"},
      {"bos_id", "1"},
      {"eos_id", "2"},
      {"pad_id", "-1"},
      {"minloglevel", "3"}};
  SampleIterator lines(sample);
  std::string serialized;
  const auto status = sentencepiece::SentencePieceTrainer::Train(arguments, &lines, &serialized);
  if (!status.ok()) training_failed(status.ToString(), training.vocab_size);
  return serialized;
}

}  // namespace

std::shared_ptr<const Tokenizer> train_tokenizer(
    CorpusReader& corpus, const TokenizerTraining& training, TokenizerTrainingReport& report,
    const std::function<void(std::uint64_t)>& on_progress) {
  if (training.vocab_size < kSmallestVocabulary) {
    throw std::invalid_argument(
        fmt::format("--vocab-size {}: at least {} are needed (256 bytes, 3 marks, 1 piece)",
                    training.vocab_size, kSmallestVocabulary));
  }
  if (!(training.character_coverage > 0.0 && training.character_coverage <= 1.0)) {
    throw std::invalid_argument(
        fmt::format("--character-coverage {}: must lie in (0, 1]", training.character_coverage));
  }
  LineSample sample(training.sample_bytes, training.seed);
  TextBlock block;
  while (corpus.next(block)) {
    std::size_t begin = 0;
    for (const std::size_t end : block.document_ends) {
      add_lines(std::string_view(block.text).substr(begin, end - begin), sample);
      begin = end;
    }
    add_lines(std::string_view(block.text).substr(begin), sample);
    if (on_progress) on_progress(corpus.bytes_read());
  }
  report = {corpus.counts(), sample.bytes()};
  if (sample.lines().empty()) throw std::invalid_argument("the corpus holds no text");
  if (on_progress) on_progress(std::numeric_limits<std::uint64_t>::max());
  return Tokenizer::from_bytes(train_on(sample, training), "the trained tokenizer");
}

}  // namespace chaski
