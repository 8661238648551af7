#include "data/tokenize_corpus.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <fmt/format.h>
#include <map>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>

#include "data/split.h"

namespace chaski {
namespace {

// A block of the corpus on its way through the pipeline.
struct EncodedBlock {
  std::vector<std::byte> ids;                 // as stored
  std::vector<std::uint64_t> document_ends;   // in tokens of the block
  std::vector<std::uint64_t> document_bytes;  // of the text, one more: of the unfinished document
  std::uint64_t unknown = 0;
  std::uint64_t bytes_read = 0;
};

// Encodes blocks on one thread.
class BlockEncoder {
 public:
  BlockEncoder(std::shared_ptr<const Tokenizer> tokenizer, std::uint64_t bytes_per_token)
      : tokenizer_(tokenizer), encoder_(tokenizer), bytes_per_token_(bytes_per_token) {}

  EncodedBlock encode(const TextBlock& block) {
    EncodedBlock result;
    ids_.clear();
    std::size_t begin = 0;
    for (const std::size_t end : block.document_ends) {
      encoder_.encode(std::string_view(block.text).substr(begin, end - begin), ids_);
      ids_.push_back(tokenizer_->eos_id());
      result.document_ends.push_back(ids_.size());
      result.document_bytes.push_back(end - begin);
      begin = end;
    }
    encoder_.encode(std::string_view(block.text).substr(begin), ids_);
    result.document_bytes.push_back(block.text.size() - begin);
    result.unknown =
        static_cast<std::uint64_t>(std::count(ids_.begin(), ids_.end(), tokenizer_->unk_id()));
    pack(result.ids);
    return result;
  }

 private:
  void pack(std::vector<std::byte>& packed) const {
    packed.resize(ids_.size() * bytes_per_token_);
    if (bytes_per_token_ == sizeof(std::int32_t)) {
      std::memcpy(packed.data(), ids_.data(), packed.size());
      return;
    }
    for (std::size_t i = 0; i < ids_.size(); ++i) {
      const auto id = static_cast<std::uint16_t>(ids_[i]);
      std::memcpy(packed.data() + i * sizeof id, &id, sizeof id);
    }
  }

  std::shared_ptr<const Tokenizer> tokenizer_;
  Encoder encoder_;
  std::uint64_t bytes_per_token_;
  std::vector<std::int32_t> ids_;
};

// One thread reads, several encode, the caller takes the blocks in order. At most a fixed number
// of blocks are under way, which bounds the memory.
class Pipeline {
 public:
  Pipeline(CorpusReader& reader, std::shared_ptr<const Tokenizer> tokenizer,
           std::uint64_t bytes_per_token, int threads)
      : reader_(reader), most_blocks_(static_cast<std::uint64_t>(threads) * 2 + 2) {
    workers_.emplace_back([this] { guard([this] { read(); }); });
    for (int i = 0; i < threads; ++i) {
      workers_.emplace_back([this, tokenizer, bytes_per_token] {
        guard([&] { encode(BlockEncoder(tokenizer, bytes_per_token)); });
      });
    }
  }

  ~Pipeline() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  // The next block in the order of the corpus; false at its end.
  bool next(EncodedBlock& block) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] {
      return error_ || done_.contains(taken_) || (read_all_ && taken_ == read_);
    });
    if (error_) std::rethrow_exception(error_);
    const auto found = done_.find(taken_);
    if (found == done_.end()) return false;
    block = std::move(found->second);
    done_.erase(found);
    ++taken_;
    lock.unlock();
    changed_.notify_all();
    return true;
  }

 private:
  struct Task {
    std::uint64_t index;
    std::uint64_t bytes_read;
    TextBlock block;
  };

  template <class Work>
  void guard(Work work) {
    try {
      work();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      stopped_ = true;
    }
    changed_.notify_all();
  }

  void read() {
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return stopped_ || read_ - taken_ < most_blocks_; });
        if (stopped_) return;
      }
      Task task{};
      const bool more = reader_.next(task.block);
      {
        const std::lock_guard lock(mutex_);
        if (more) {
          task.index = read_++;
          task.bytes_read = reader_.bytes_read();
          waiting_.push_back(std::move(task));
        } else {
          read_all_ = true;
        }
      }
      changed_.notify_all();
      if (!more) return;
    }
  }

  void encode(BlockEncoder encoder) {
    for (;;) {
      Task task;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return stopped_ || !waiting_.empty() || read_all_; });
        if (stopped_ || waiting_.empty()) return;
        task = std::move(waiting_.front());
        waiting_.pop_front();
      }
      EncodedBlock block = encoder.encode(task.block);
      block.bytes_read = task.bytes_read;
      {
        const std::lock_guard lock(mutex_);
        done_.emplace(task.index, std::move(block));
      }
      changed_.notify_all();
    }
  }

  CorpusReader& reader_;
  const std::uint64_t most_blocks_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> waiting_;
  std::map<std::uint64_t, EncodedBlock> done_;
  std::uint64_t read_ = 0;   // blocks
  std::uint64_t taken_ = 0;  // blocks
  bool read_all_ = false;
  bool stopped_ = false;
  std::exception_ptr error_;
  std::vector<std::thread> workers_;
};

void check_options(const Tokenizer& tokenizer, const TokenizeOptions& options) {
  if (tokenizer.eos_id() < 0) {
    throw std::invalid_argument(
        "the tokenizer has no end-of-sentence token, which separates documents");
  }
  if (!(options.validation >= 0.0 && options.validation < 1.0)) {
    throw std::invalid_argument(
        fmt::format("--split validation={}: must lie in [0, 1)", options.validation));
  }
  if (options.threads < 0 || options.threads > 4096) {
    throw std::invalid_argument(
        fmt::format("--threads {}: must lie in [0, 4096] (0: all cores)", options.threads));
  }
}

// Whether the tokenizer can represent U+0000.
bool keeps_nul(const Tokenizer& tokenizer) {
  const std::string nul(1, '\0');
  return tokenizer.decode(tokenizer.encode(nul)) == nul;
}

void spool_corpus(Pipeline& pipeline, std::uint64_t total_bytes, TokenSpool& spool,
                  TokenizeReport& report,
                  const std::function<void(const TokenizeProgress&)>& on_progress) {
  EncodedBlock block;
  std::uint64_t unfinished_bytes = 0;
  while (pipeline.next(block)) {
    const std::uint64_t width = spool.bytes_per_token();
    std::uint64_t begin = 0;
    for (std::size_t i = 0; i < block.document_ends.size(); ++i) {
      const std::uint64_t end = block.document_ends[i];
      spool.add_tokens(block.ids.data() + begin * width, end - begin);
      spool.end_document(unfinished_bytes + block.document_bytes[i]);
      unfinished_bytes = 0;
      begin = end;
    }
    spool.add_tokens(block.ids.data() + begin * width, block.ids.size() / width - begin);
    unfinished_bytes += block.document_bytes.back();
    report.unknown += block.unknown;
    if (on_progress) on_progress({block.bytes_read, total_bytes, spool.num_tokens()});
  }
}

}  // namespace

TokenizeReport tokenize_corpus(const std::vector<CorpusFile>& files,
                               std::shared_ptr<const Tokenizer> tokenizer,
                               const TokenizeOptions& options,
                               const std::function<void(const TokenizeProgress&)>& on_progress) {
  check_options(*tokenizer, options);
  CorpusOptions corpus_options = options.corpus;
  corpus_options.refuse_nul = !keeps_nul(*tokenizer);
  CorpusReader reader(files, corpus_options);

  // First of all, so that a name that cannot be written is known before the work.
  TokenFileWriter writer(options.out, options.overwrite);
  TokenFileHeader header;
  header.creator = options.creator;
  header.tokenizer_fingerprint = tokenizer->fingerprint();
  header.tokenizer_model = tokenizer->serialized();
  header.vocab_size = static_cast<std::uint64_t>(tokenizer->vocab_size());
  header.eos_id = static_cast<std::uint64_t>(tokenizer->eos_id());
  for (const CorpusFile& file : files) header.sources.push_back({file.path, file.bytes});

  TokenizeReport report;
  TokenSpool spool(options.out, header.bytes_per_token());
  {
    const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    Pipeline pipeline(reader, tokenizer, header.bytes_per_token(),
                      options.threads > 0 ? options.threads : cores);
    spool_corpus(pipeline, reader.total_bytes(), spool, report, on_progress);
  }
  report.corpus = reader.counts();
  report.tokens = spool.num_tokens();
  if (report.corpus.documents == 0) throw std::invalid_argument("the corpus holds no text");

  const Split split = plan_split(spool, *tokenizer, options.validation, options.seed);
  report.split = header.split = split.in_words();
  report.train = split.train;
  report.validation = split.validation;
  writer.write_header(header);
  write_parts(spool, split, writer);
  writer.commit();
  return report;
}

}  // namespace chaski
