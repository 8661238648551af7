#include "data/corpus_reader.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <fmt/format.h>
#include <re2/re2.h>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "data/byte_source.h"
#include "data/json_text.h"
#include "data/utf8.h"

namespace chaski {
namespace {

constexpr std::size_t kReadBytes = 64 * 1024;
// A line longer than this is no document separator.
constexpr std::size_t kSeparatorLineBytes = 64 * 1024;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

bool is_blank(std::string_view line) {
  return std::all_of(line.begin(), line.end(), [](char c) {
    return c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '\f' || c == '\v';
  });
}

// The text of one file in pieces of valid UTF-8.
class TextSource {
 public:
  TextSource(const std::string& path, const CorpusOptions& options, CorpusCounts& counts)
      : path_(path), options_(options), counts_(counts), bytes_(open_byte_source(path)) {}

  // The next piece, valid until the next call; empty only at the end of the file.
  std::string_view next() {
    for (;;) {
      if (begin_ == raw_.size() && !fill()) return {};
      std::string_view rest = std::string_view(raw_).substr(begin_);
      if (offset_ == 0 && skip_byte_order_mark(rest)) continue;
      const std::size_t valid = valid_utf8_prefix(rest);
      if (valid > 0) return hand_out(rest.substr(0, valid));
      bool incomplete;
      const std::size_t length = ill_formed_length(rest, incomplete);
      if (incomplete && fill()) continue;
      return ill_formed(length);
    }
  }

  std::uint64_t consumed() const { return bytes_->consumed(); }

 private:
  // Reads on behind what is left over; false at the end of the file.
  bool fill() {
    raw_.erase(0, begin_);
    begin_ = 0;
    const std::size_t kept = raw_.size();
    raw_.resize(kept + kReadBytes);
    const std::size_t count = bytes_->read(raw_.data() + kept, kReadBytes);
    raw_.resize(kept + count);
    return count > 0;
  }

  bool skip_byte_order_mark(std::string_view rest) {
    if (!rest.starts_with(kByteOrderMark)) return false;
    begin_ += kByteOrderMark.size();
    offset_ += kByteOrderMark.size();
    return true;
  }

  std::string_view hand_out(std::string_view text) {
    if (options_.refuse_nul) {
      const std::size_t nul = text.find('\0');
      if (nul != std::string_view::npos) {
        throw std::runtime_error(fmt::format(
            "{}: a NUL byte at byte {}, which this tokenizer cannot represent\n"
            "hint: use a tokenizer with byte fallback, as `chaski tokenizer` makes them",
            path_, offset_ + nul));
      }
    }
    begin_ += text.size();
    offset_ += text.size();
    return text;
  }

  std::string_view ill_formed(std::size_t length) {
    if (options_.invalid_utf8 == InvalidUtf8::error) {
      throw std::runtime_error(fmt::format(
          "{}: invalid UTF-8 at byte {} (0x{:02X})\n"
          "hint: convert the file (iconv -f LATIN1 -t UTF-8 …), or pass --invalid-utf8 replace",
          path_, offset_, static_cast<unsigned char>(raw_[begin_])));
    }
    ++counts_.replaced;
    begin_ += length;
    offset_ += length;
    return kReplacementCharacter;
  }

  const std::string& path_;
  const CorpusOptions& options_;
  CorpusCounts& counts_;
  std::unique_ptr<ByteSource> bytes_;
  std::string raw_;
  std::size_t begin_ = 0;     // of what has not been handed out
  std::uint64_t offset_ = 0;  // of that in the uncompressed file
};

// Where to cut `text`, which goes on: the last place behind half of it at which a tokenizer is
// not disturbed.
std::size_t cut_position(std::string_view text) {
  const std::size_t line_end = text.rfind('\n');
  if (line_end != std::string_view::npos && line_end >= text.size() / 2) return line_end + 1;
  for (std::size_t i = text.size() - 1; i > text.size() / 2; --i) {
    if (text[i] == ' ' && text[i - 1] != ' ') return i;
  }
  return character_border(text, text.size() - 1);
}

}  // namespace

class CorpusReader::Impl {
 public:
  Impl(std::vector<CorpusFile> files, CorpusOptions options)
      : files_(std::move(files)), options_(std::move(options)) {
    for (const CorpusFile& file : files_) total_bytes_ += file.bytes;
    options_.block_bytes = std::max<std::size_t>(options_.block_bytes, 64);
    const auto& separator = options_.document_separator;
    if (separator && !separator->empty()) {
      separator_ = std::make_unique<RE2>(*separator, RE2::Quiet);
      if (!separator_->ok()) {
        throw std::invalid_argument(
            fmt::format("document separator \"{}\": {}", *separator, separator_->error()));
      }
    }
  }

  bool next(TextBlock& block) {
    while (ready_.empty()) {
      if (!source_) {
        if (file_ == files_.size()) return finish(block);
        source_ = std::make_unique<TextSource>(files_[file_].path, options_, counts_);
        line_number_ = 1;
      }
      const std::string_view text = source_->next();
      if (text.empty()) {
        end_file();
      } else {
        take(text);
      }
    }
    block = std::move(ready_.front());
    ready_.pop_front();
    return true;
  }

  const CorpusCounts& counts() const { return counts_; }
  std::uint64_t total_bytes() const { return total_bytes_; }
  std::uint64_t bytes_read() const { return finished_bytes_ + (source_ ? source_->consumed() : 0); }

 private:
  bool finish(TextBlock& block) {
    if (pending_.text.empty() && pending_.document_ends.empty()) return false;
    block = std::exchange(pending_, TextBlock{});
    return true;
  }

  bool is_json() const { return files_[file_].format == CorpusFormat::json_lines; }

  void take(std::string_view text) {
    while (!text.empty()) {
      const std::size_t end = text.find('\n');
      const std::string_view part = text.substr(0, end);
      is_json() ? take_json_part(part) : take_line_part(part);
      if (end == std::string_view::npos) return;
      is_json() ? end_json_line() : end_text_line();
      ++line_number_;
      text.remove_prefix(end + 1);
    }
  }

  void end_file() {
    if (is_json()) {
      end_json_line();
    } else {
      if (!line_.empty() || decided_) end_text_line();
      end_document();
    }
    finished_bytes_ += files_[file_].bytes;
    source_.reset();
    ++file_;
  }

  // .txt: a line is undecided while it may still be a separator, and is text from then on.

  void take_line_part(std::string_view part) {
    if (decided_) return append(part);
    line_.append(part);
    const bool may_separate = separator_ ? line_.size() <= kSeparatorLineBytes
                                         : line_.size() <= kSeparatorLineBytes && is_blank(line_);
    if (options_.document_separator && !separator_) return decide_text();
    if (!may_separate) decide_text();
  }

  void decide_text() {
    if (in_document_) append("\n");
    in_document_ = decided_ = true;
    append(line_);
    line_.clear();
  }

  void end_text_line() {
    if (!decided_) {
      if (is_separator()) {
        end_document();
        line_.clear();
      } else {
        decide_text();
      }
    }
    decided_ = false;
  }

  bool is_separator() const {
    if (separator_) return RE2::PartialMatch(line_, *separator_);
    return !options_.document_separator && is_blank(line_);
  }

  // .jsonl: a line is held up to a limit and streamed beyond it.

  void take_json_part(std::string_view part) {
    try {
      if (stream_) return stream_->feed(part);
      line_.append(part);
      if (line_.size() <= options_.max_line_bytes) return;
      in_document_ = true;
      stream_ = std::make_unique<JsonTextStream>(options_.text_key, replaces(),
                                                 [this](std::string_view t) { append_json(t); });
      stream_->feed(std::exchange(line_, {}));
    } catch (const JsonTextError& error) {
      json_error(error);
    }
  }

  void end_json_line() {
    try {
      if (stream_) {
        stream_->finish();
        stream_.reset();
      } else if (is_blank(line_)) {
        line_.clear();
        return;
      } else {
        in_document_ = true;
        append_json(json_text(line_, options_.text_key, replaces()));
        line_.clear();
      }
    } catch (const JsonTextError& error) {
      json_error(error);
    }
    end_document();
  }

  bool replaces() const { return options_.invalid_utf8 == InvalidUtf8::replace; }

  void append_json(std::string_view text) {
    if (options_.refuse_nul && text.find('\0') != std::string_view::npos) {
      json_error({"holds a NUL character, which this tokenizer cannot represent"});
    }
    append(text);
  }

  [[noreturn]] void json_error(const JsonTextError& error) const {
    std::string message =
        fmt::format("{}: line {} {}", files_[file_].path, line_number_, error.message);
    message += error.lone_surrogate ? "\nhint: pass --invalid-utf8 replace"
                                    : "\nhint: each line is one JSON object; --text-key names the "
                                      "key that holds its text";
    throw std::runtime_error(message);
  }

  // Blocks.

  void append(std::string_view text) {
    has_text_ = has_text_ || !is_blank(text);
    while (!text.empty()) {
      const std::size_t room = options_.block_bytes - pending_.text.size();
      const std::size_t count = std::min(room, text.size());
      pending_.text.append(text.substr(0, count));
      text.remove_prefix(count);
      if (pending_.text.size() >= options_.block_bytes) flush();
    }
  }

  void end_document() {
    if (!in_document_) return;
    if (has_text_ || document_flushed_) {
      pending_.document_ends.push_back(pending_.text.size());
      ++counts_.documents;
      counts_.text_bytes += pending_.text.size() - document_begin_;
    } else {
      pending_.text.resize(document_begin_);
      ++counts_.empty_documents;
    }
    document_begin_ = pending_.text.size();
    in_document_ = has_text_ = document_flushed_ = false;
  }

  // Makes a block ready out of a full one. Documents stay whole where that costs at most half of
  // the block.
  void flush() {
    std::string& text = pending_.text;
    const auto& ends = pending_.document_ends;
    std::size_t cut = ends.empty() ? 0 : ends.back();
    if (cut < text.size() / 2) {
      cut = cut_position(text);
      counts_.text_bytes += cut - document_begin_;
      document_flushed_ = true;
    }
    TextBlock rest;
    rest.text.reserve(options_.block_bytes);
    rest.text.assign(text, cut);
    text.resize(cut);
    document_begin_ = 0;
    ready_.push_back(std::move(pending_));
    pending_ = std::move(rest);
  }

  std::vector<CorpusFile> files_;
  CorpusOptions options_;
  std::unique_ptr<RE2> separator_;
  CorpusCounts counts_;
  std::uint64_t total_bytes_ = 0;
  std::uint64_t finished_bytes_ = 0;

  std::size_t file_ = 0;  // the current one
  std::unique_ptr<TextSource> source_;
  std::string line_;      // undecided (.txt) or whole so far (.jsonl)
  bool decided_ = false;  // the current .txt line is text
  std::uint64_t line_number_ = 1;
  std::unique_ptr<JsonTextStream> stream_;

  TextBlock pending_;
  std::deque<TextBlock> ready_;
  std::size_t document_begin_ = 0;  // of the current document in pending_
  bool in_document_ = false;
  bool has_text_ = false;          // the current document is more than white space
  bool document_flushed_ = false;  // a part of it is in an earlier block
};

CorpusReader::CorpusReader(std::vector<CorpusFile> files, CorpusOptions options)
    : impl_(std::make_unique<Impl>(std::move(files), std::move(options))) {}
CorpusReader::~CorpusReader() = default;

bool CorpusReader::next(TextBlock& block) {
  return impl_->next(block);
}
const CorpusCounts& CorpusReader::counts() const {
  return impl_->counts();
}
std::uint64_t CorpusReader::bytes_read() const {
  return impl_->bytes_read();
}
std::uint64_t CorpusReader::total_bytes() const {
  return impl_->total_bytes();
}

}  // namespace chaski
