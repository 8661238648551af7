#include "data/loader.h"

#include <condition_variable>
#include <exception>
#include <fmt/format.h>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "data/sampler.h"

namespace chaski {
namespace {

void check(const LoaderOptions& options) {
  const auto require = [](bool condition, const std::string& message) {
    if (!condition) throw std::invalid_argument(message);
  };
  require(options.global_batch >= 1,
          fmt::format("global_batch {}: must be at least 1", options.global_batch));
  require(options.micro_batch >= 1,
          fmt::format("micro_batch {}: must be at least 1", options.micro_batch));
  require(options.first_row >= 0 && options.num_rows >= 1 &&
              options.first_row + options.num_rows <= options.global_batch,
          fmt::format("rows [{}, {} + {}) do not lie in a global_batch of {}", options.first_row,
                      options.first_row, options.num_rows, options.global_batch));
  require(options.num_rows % options.micro_batch == 0,
          fmt::format("{} rows a replica are no multiple of micro_batch {}", options.num_rows,
                      options.micro_batch));
  require(options.prefetch_depth >= 1,
          fmt::format("prefetch_depth {}: must be at least 1", options.prefetch_depth));
}

}  // namespace

class Loader::Impl {
 public:
  Impl(std::shared_ptr<const SequenceDataset> data, const LoaderOptions& options)
      : dataset(std::move(data)), options_(options) {
    check(options_);
    micro_batches = options_.num_rows / options_.micro_batch;
    // One more than are prepared ahead: the one that the caller is reading.
    ring_.resize(static_cast<std::size_t>(options_.prefetch_depth) + 1);
    thread_ = std::thread([this] { prefetch(); });
  }

  ~Impl() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  const Batch& get(std::uint64_t step, std::int64_t index) {
    if (index < 0 || index >= micro_batches) {
      throw std::invalid_argument(
          fmt::format("micro-batch {} of {} in a step", index, micro_batches));
    }
    const std::uint64_t wanted =
        step * static_cast<std::uint64_t>(micro_batches) + static_cast<std::uint64_t>(index);
    std::unique_lock lock(mutex_);
    if (!started_ || wanted != next_) restart(wanted);
    next_ = wanted + 1;
    changed_.notify_all();
    changed_.wait(lock, [&] { return prepared_ > wanted || error_; });
    if (prepared_ <= wanted) {
      // Asking again tries again.
      started_ = false;
      std::rethrow_exception(std::exchange(error_, nullptr));
    }
    return slot(wanted);
  }

  std::uint64_t epoch(std::uint64_t step) const {
    const auto sample = step * static_cast<std::uint64_t>(options_.global_batch);
    return sample / dataset->num_sequences();
  }

  const std::shared_ptr<const SequenceDataset> dataset;
  std::int64_t micro_batches = 1;  // of a step

 private:
  Batch& slot(std::uint64_t number) { return ring_[number % ring_.size()]; }

  // Makes the thread begin again at micro-batch `number`. Called with the lock held.
  void restart(std::uint64_t number) {
    ++generation_;
    started_ = true;
    prepared_ = number;
    error_ = nullptr;
  }

  bool may_prepare() const {
    // The slot of micro-batch next_ - 1 is in the caller's hands.
    return started_ && !error_ && prepared_ < next_ - 1 + ring_.size();
  }

  void prefetch() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return stopped_ || may_prepare(); });
      if (stopped_) return;
      const std::uint64_t number = prepared_, generation = generation_;
      lock.unlock();
      std::exception_ptr error;
      try {
        fill(number, scratch_);
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      // The caller may have gone elsewhere meanwhile.
      if (generation != generation_) continue;
      if (error) {
        error_ = error;
      } else {
        std::swap(slot(number), scratch_);
        ++prepared_;
      }
      changed_.notify_all();
    }
  }

  void fill(std::uint64_t number, Batch& batch) const {
    const std::uint64_t step = number / static_cast<std::uint64_t>(micro_batches);
    const auto index =
        static_cast<std::int64_t>(number % static_cast<std::uint64_t>(micro_batches));
    batch.resize(options_.micro_batch, dataset->sequence_length());
    for (std::int64_t row = 0; row < options_.micro_batch; ++row) {
      const std::int64_t global_row = options_.first_row + index * options_.micro_batch + row;
      const std::uint64_t sample = step * static_cast<std::uint64_t>(options_.global_batch) +
                                   static_cast<std::uint64_t>(global_row);
      const SequencePosition position =
          sequence_at(sample, dataset->num_sequences(), options_.seed, options_.shuffle);
      dataset->read(position.sequence, options_.reset_at_documents, row, batch);
    }
  }

  const LoaderOptions options_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Batch> ring_;  // micro-batch n stands in slot n % size
  Batch scratch_;            // being filled by the thread
  bool started_ = false;
  std::uint64_t next_ = 0;        // the micro-batch that is asked for next, if in order
  std::uint64_t prepared_ = 0;    // the first one that is not prepared
  std::uint64_t generation_ = 0;  // of restarts
  std::exception_ptr error_;      // while preparing micro-batch prepared_
  bool stopped_ = false;
  std::thread thread_;
};

Loader::Loader(std::shared_ptr<const SequenceDataset> dataset, const LoaderOptions& options)
    : impl_(std::make_unique<Impl>(std::move(dataset), options)) {}
Loader::~Loader() = default;

std::int64_t Loader::micro_batches_per_step() const {
  return impl_->micro_batches;
}
const SequenceDataset& Loader::dataset() const {
  return *impl_->dataset;
}
const Batch& Loader::get(std::uint64_t step, std::int64_t index) {
  return impl_->get(step, index);
}
std::uint64_t Loader::epoch(std::uint64_t step) const {
  return impl_->epoch(step);
}

}  // namespace chaski
