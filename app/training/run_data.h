#pragma once

#include <memory>
#include <string>

#include "app/config/config.h"
#include "data/background_verification.h"
#include "data/sequence_dataset.h"

namespace chaski {

// The token files of a run, opened and checked against its model and each other.
class RunData {
 public:
  // Throws std::invalid_argument when files do not fit the model or have another tokenizer.
  explicit RunData(const TrainConfig& config);

  const std::shared_ptr<const SequenceDataset>& training() const { return training_; }
  const TokenStream& stream() const { return training_->stream(); }
  // Null: there is none.
  const std::shared_ptr<const TokenStream>& validation() const { return validation_; }

  // Throws std::invalid_argument when the files were made with another tokenizer than `whose`.
  void check_tokenizer(const std::string& fingerprint, const std::string& whose) const;

  // Reads all files through in the background, by one process of the job; once.
  void start_verification();
  // What it found just now; empty: nothing new.
  std::string newly_found_damage();
  // What it has found.
  const std::string& damage() const { return damage_; }

 private:
  std::shared_ptr<const SequenceDataset> training_;
  std::shared_ptr<const TokenStream> validation_;
  std::unique_ptr<BackgroundVerification> verification_;
  std::string damage_;
};

}  // namespace chaski
