#include "data/sequence_dataset.h"

#include <algorithm>
#include <fmt/format.h>
#include <numeric>
#include <stdexcept>

namespace chaski {

void Batch::resize(std::int64_t new_rows, std::int64_t new_sequence_length) {
  rows = new_rows;
  sequence_length = new_sequence_length;
  const auto size = static_cast<std::size_t>(rows * sequence_length);
  tokens.resize(size);
  targets.resize(size);
  positions.resize(size);
}

std::shared_ptr<const TokenStream> TokenStream::open(const std::vector<std::string>& paths,
                                                     Part part) {
  if (paths.empty()) throw std::invalid_argument("no token file is named");
  std::shared_ptr<TokenStream> stream(new TokenStream);
  stream->part_ = part;
  stream->begins_.push_back(0);
  for (const std::string& path : paths) {
    auto file = TokenFile::open(path);
    const TokenPart& tokens = file->part(part);
    if (!stream->files_.empty() && file->header().tokenizer_fingerprint != stream->fingerprint()) {
      throw std::invalid_argument(
          fmt::format("{}: was made by another tokenizer than {}\n"
                      "hint: make all token files of a run with the same --tokenizer",
                      path, stream->files_.front()->path()));
    }
    stream->num_tokens_ += tokens.num_tokens();
    stream->num_documents_ += tokens.num_documents();
    stream->num_bytes_ += tokens.num_bytes();
    stream->begins_.push_back(stream->num_tokens_);
    stream->files_.push_back(std::move(file));
  }
  return stream;
}

std::size_t TokenStream::file_of(std::uint64_t token) const {
  const auto after = std::upper_bound(begins_.begin(), begins_.end(), token);
  return static_cast<std::size_t>(after - begins_.begin()) - 1;
}

void TokenStream::read(std::uint64_t begin, std::uint64_t count, std::int32_t* out) const {
  if (begin > num_tokens_ || count > num_tokens_ - begin) {
    throw std::out_of_range(fmt::format("tokens [{}, {} + {}) asked for, the files hold {}", begin,
                                        begin, count, num_tokens_));
  }
  while (count > 0) {
    const std::size_t file = file_of(begin);
    const std::uint64_t run = std::min(count, begins_[file + 1] - begin);
    files_[file]->part(part_).read(begin - begins_[file], run, out);
    begin += run;
    count -= run;
    out += run;
  }
}

void TokenStream::read_positions(std::uint64_t begin, std::uint64_t count,
                                 std::int32_t* out) const {
  const std::uint64_t end = begin + count;
  std::uint64_t token = begin;
  while (token < end) {
    const std::size_t file = file_of(token);
    const TokenPart& part = files_[file]->part(part_);
    std::uint64_t document = part.document_of(token - begins_[file]);
    const std::uint64_t stop = std::min(end, begins_[file + 1]);
    while (token < stop) {
      const std::uint64_t next = std::min(stop, begins_[file] + part.document_offset(++document));
      if (next <= token) {
        throw std::runtime_error(fmt::format(
            "{}: the documents are not in order: the file is damaged", files_[file]->path()));
      }
      std::iota(out, out + (next - token), 0);
      out += next - token;
      token = next;
    }
  }
}

std::shared_ptr<const SequenceDataset> SequenceDataset::open(const std::vector<std::string>& paths,
                                                             Part part,
                                                             std::int64_t sequence_length) {
  if (sequence_length < 1) {
    throw std::invalid_argument(
        fmt::format("sequence_length {}: must be at least 1", sequence_length));
  }
  std::shared_ptr<SequenceDataset> dataset(new SequenceDataset);
  dataset->stream_ = TokenStream::open(paths, part);
  dataset->sequence_length_ = sequence_length;
  const std::uint64_t num_tokens = dataset->stream_->num_tokens();
  dataset->num_sequences_ = (num_tokens - 1) / static_cast<std::uint64_t>(sequence_length);
  if (dataset->num_sequences_ == 0) {
    throw std::invalid_argument(fmt::format(
        "{}: the {} part holds {} tokens, fewer than the {} that sequence_length {} needs\n"
        "hint: lower data.sequence_length or tokenize more text",
        paths.front(), name_of(part), num_tokens, sequence_length + 1, sequence_length));
  }
  return dataset;
}

void SequenceDataset::read(std::uint64_t sequence, bool reset_at_documents, std::int64_t row,
                           Batch& batch) const {
  const auto length = static_cast<std::uint64_t>(sequence_length_);
  const std::uint64_t begin = sequence * length;
  std::int32_t* tokens = batch.tokens.data() + row * sequence_length_;
  std::int32_t* targets = batch.targets.data() + row * sequence_length_;
  std::int32_t* positions = batch.positions.data() + row * sequence_length_;
  stream_->read(begin, length, tokens);
  stream_->read(begin + 1, length, targets);
  if (reset_at_documents) {
    stream_->read_positions(begin, length, positions);
  } else {
    std::iota(positions, positions + length, 0);
  }
}

}  // namespace chaski
