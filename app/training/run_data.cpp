#include "app/training/run_data.h"

#include <fmt/core.h>
#include <stdexcept>
#include <utility>
#include <vector>

#include "data/tokenizer.h"

namespace chaski {
namespace {

void check_vocabulary(const TokenStream& stream, const LlamaConfig& model) {
  if (stream.vocab_size() > static_cast<std::uint64_t>(model.vocab_size)) {
    throw std::invalid_argument(
        fmt::format("{}: its tokenizer has {} tokens, more than model.vocab_size = {}\n"
                    "hint: set model.vocab_size = {}",
                    stream.files().front()->path(), stream.vocab_size(), model.vocab_size,
                    stream.vocab_size()));
  }
}

void check_same_tokenizer(const TokenStream& stream, const std::string& expected,
                          const std::string& whose) {
  if (stream.fingerprint() == expected) return;
  throw std::invalid_argument(
      fmt::format("{} was made with tokenizer {}, but {} has {}\nhint: run `chaski tokenize` again "
                  "with the tokenizer that the model was trained with",
                  stream.files().front()->path(), stream.fingerprint(), whose, expected));
}

bool has_validation_part(const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    if (!TokenFile::open(path)->has_part(Part::validation)) return false;
  }
  return true;
}

}  // namespace

RunData::RunData(const TrainConfig& config) {
  const RunFiles files = resolve_files(config);
  training_ = SequenceDataset::open(files.train, Part::train, config.data.sequence_length);
  check_vocabulary(stream(), config.model.llama);
  if (!config.data.tokenizer.empty()) {
    check_tokenizer(Tokenizer::load(config.data.tokenizer)->fingerprint(),
                    "data.tokenizer = " + config.data.tokenizer);
  }
  const std::vector<std::string>& validation =
      files.validation.empty() ? files.train : files.validation;
  if (has_validation_part(validation)) {
    validation_ = TokenStream::open(validation, Part::validation);
  } else if (!files.validation.empty()) {
    // Files named for validation that were made without a split are used whole.
    validation_ = TokenStream::open(validation, Part::train);
  }
  if (validation_ != nullptr) {
    check_same_tokenizer(*validation_, stream().fingerprint(), files.train.front());
  }
}

void RunData::check_tokenizer(const std::string& fingerprint, const std::string& whose) const {
  check_same_tokenizer(stream(), fingerprint, whose);
}

void RunData::start_verification() {
  if (verification_ != nullptr) return;
  std::vector<std::shared_ptr<const TokenStream>> streams = {training_->shared_stream()};
  if (validation_ != nullptr) streams.push_back(validation_);
  verification_ = std::make_unique<BackgroundVerification>(std::move(streams));
}

std::string RunData::newly_found_damage() {
  if (verification_ == nullptr) return "";
  try {
    verification_->check();
    return "";
  } catch (const std::runtime_error& error) {
    const std::string what = error.what();
    damage_ = what.substr(0, what.find('\n'));
    return damage_;
  }
}

}  // namespace chaski
