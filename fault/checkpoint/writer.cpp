#include "fault/checkpoint/writer.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <fmt/format.h>
#include <hdf5.h>
#include <mutex>
#include <signal.h>
#include <system_error>
#include <thread>

#include "fault/checkpoint/commit.h"
#include "fault/checkpoint/frozen_tensors.h"
#include "fault/checkpoint/shard.h"
#include "kernels/device/clock.h"
#include "kernels/device/cpu_cores.h"

namespace chaski {
namespace {

using Clock = std::chrono::steady_clock;

bool hdf5_allows_threads() {
  hbool_t safe = false;
  return H5is_library_threadsafe(&safe) >= 0 && safe;
}

// A thread that never runs the program's signal handlers: those belong to the main thread, whose
// waits they interrupt.
std::thread start_without_signals(std::function<void()> work) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);
  std::thread thread;
  std::exception_ptr failure;
  try {
    thread = std::thread(std::move(work));
  } catch (const std::system_error&) {
    failure = std::current_exception();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (failure) std::rethrow_exception(failure);
  return thread;
}

}  // namespace

struct CheckpointWriter::Implementation {
  Implementation(const std::string& path, const CheckpointWriterOptions& chosen, FileSystem& used)
      : directory(path), options(chosen), files(used) {}

  std::string directory;
  CheckpointWriterOptions options;
  FileSystem& files;
  std::unique_ptr<FrozenTensors> frozen;  // of the save in flight
  std::thread thread;
  std::atomic<bool> busy{false};
  std::atomic<bool> abandoned{false};  // the save in flight
  bool made_directory = false;         // of the save in flight
  std::exception_ptr error;
  std::mutex mutex;  // of the reports
  std::vector<SaveReport> reports;

  // Runs in the thread, or in the caller's when not async.
  std::string write(const CheckpointMetadata& metadata, const std::vector<TensorRecord>& records,
                    std::uint64_t& bytes) {
    create_directories(files, directory);
    const std::string unfinished = unfinished_path(directory, metadata.step);
    if (options.num_shards == 1) remove_tree(files, unfinished);
    files.create_directory(unfinished);
    made_directory = true;
    const ShardInfo info =
        write_shard(files, unfinished, options.shard, options.num_shards, metadata, records);
    bytes = info.bytes;
    if (options.shard != 0) {
      report_shard(files, unfinished, info, options.shard, options.num_shards);
      return join_path(directory, checkpoint_name(metadata.step));
    }
    const std::vector<ShardInfo> shards =
        gather_shards(files, unfinished, info, options.num_shards,
                      {.timeout_seconds = options.shard_timeout_seconds,
                       .abandoned = abandoned,
                       .meanwhile = [this] {
                         if (!options.async) options.while_waiting();
                       }});
    return commit_checkpoint(files, directory, metadata.step, shards);
  }

  void delete_old(std::int64_t step) {
    if (options.shard != 0) return;
    try {
      delete_old_checkpoints(files, directory, options.keep, options.keep_every);
    } catch (const std::exception& failure) {
      error = std::make_exception_ptr(std::runtime_error(fmt::format(
          "the checkpoint of step {} was saved, but older ones could not be deleted: {}", step,
          failure.what())));
    }
  }

  // As write(), with its outcome left in `reports` or `error`.
  void run(const CheckpointMetadata& metadata, const std::vector<TensorRecord>& records,
           SaveReport report, Clock::time_point start) {
    made_directory = false;
    try {
      report.directory_vanished = !files.status(directory);
      report.path = write(metadata, records, report.bytes);
      report.total_seconds = seconds_since(start);
      complete(report);
      delete_old(metadata.step);
    } catch (const std::exception& failure) {
      give_up(metadata.step, failure.what());
      error = std::make_exception_ptr(std::runtime_error(describe(metadata.step, failure.what())));
    }
    if (frozen) frozen->release();
    busy = false;
  }

  void give_up(std::int64_t step, const std::string& reason) {
    if (options.shard == 0) return abandon_checkpoint(files, directory, step);
    const std::string unfinished = unfinished_path(directory, step);
    try {
      // If it was made and is gone, nobody waits any more.
      if (!made_directory) files.create_directory(unfinished);
    } catch (const FileError&) {
      return;
    }
    report_failed_shard(files, unfinished, reason, options.shard, options.num_shards);
  }

  void complete(SaveReport& report) {
    if (options.async) {
      const FrozenTensors::Copy copied = frozen->copied();
      report.copied_bytes = copied.bytes;
      report.copy_seconds = copied.seconds;
      report.stall_seconds = report.wait_seconds + copied.seconds;
    } else {
      report.stall_seconds = report.total_seconds;
    }
    const std::lock_guard lock(mutex);
    reports.push_back(report);
  }

  std::string describe(std::int64_t step, const std::string& reason) {
    constexpr double kMiB = 1024.0 * 1024.0;
    return fmt::format(
        "the checkpoint of step {} was not saved: {} ({:.1f} MiB free)\n"
        "hint: older checkpoints and `latest` are as they were; free some space, or lower "
        "checkpoint.keep",
        step, reason, static_cast<double>(files.free_bytes(directory)) / kMiB);
  }

  void join() {
    if (thread.joinable()) thread.join();
  }

  void rethrow() {
    if (error) std::rethrow_exception(std::exchange(error, nullptr));
  }
};

CheckpointWriter::CheckpointWriter(const std::string& directory,
                                   const CheckpointWriterOptions& options, FileSystem& files)
    : implementation_(new Implementation(directory, options, files)) {
  CheckpointWriterOptions& chosen = implementation_->options;
  if (chosen.num_shards < 1 || chosen.num_shards > kMaxShards || chosen.shard < 0 ||
      chosen.shard >= chosen.num_shards)
    throw std::invalid_argument(
        fmt::format("a checkpoint cannot have a shard {} of {}", chosen.shard, chosen.num_shards));
  if (chosen.copy_threads <= 0) chosen.copy_threads = usable_cores();
  // Another thread's HDF5 calls (opening a token file) would meet those of the writing thread.
  if (!hdf5_allows_threads()) chosen.async = false;
  create_directories(files, directory);
}

CheckpointWriter::~CheckpointWriter() {
  implementation_->join();
}

void CheckpointWriter::save(const CheckpointMetadata& metadata, const ParameterSet& weights,
                            const std::vector<NamedTensor>& optimizer) {
  Implementation& self = *implementation_;
  const auto start = Clock::now();
  wait();
  SaveReport report;
  report.step = metadata.step;
  report.wait_seconds = seconds_since(start);
  self.abandoned = false;
  const std::vector<NamedTensor> tensors =
      checkpoint_tensors(weights, optimizer, self.options.shard);
  if (!self.options.async) {
    self.run(metadata, live_records(tensors), report, start);
    return self.rethrow();
  }
  self.frozen = std::make_unique<FrozenTensors>(tensors);
  self.busy = true;
  try {
    self.thread = start_without_signals([&self, metadata, records = self.frozen->records(), report,
                                         start] { self.run(metadata, records, report, start); });
  } catch (const std::system_error& failure) {
    self.busy = false;
    self.frozen.reset();
    throw std::runtime_error(self.describe(
        metadata.step, fmt::format("no thread can be started to write it: {}", failure.what())));
  }
}

void CheckpointWriter::before_update() {
  Implementation& self = *implementation_;
  if (!busy() || self.frozen->keep(self.options.copy_threads)) return;
  const auto start = Clock::now();
  self.join();
  const std::lock_guard lock(self.mutex);
  if (!self.reports.empty()) self.reports.back().stall_seconds += seconds_since(start);
}

void CheckpointWriter::wait() {
  implementation_->join();
  implementation_->frozen.reset();  // with what it had to keep
  implementation_->rethrow();
}

void CheckpointWriter::check() {
  if (!busy()) wait();
}

void CheckpointWriter::abandon() noexcept {
  implementation_->abandoned = true;
}

void CheckpointWriter::clear_attempt(std::int64_t step) noexcept {
  const Implementation& self = *implementation_;
  if (self.options.shard == 0) abandon_checkpoint(self.files, self.directory, step);
}

bool CheckpointWriter::busy() const {
  return implementation_->busy;
}

std::vector<SaveReport> CheckpointWriter::take_reports() {
  const std::lock_guard lock(implementation_->mutex);
  return std::exchange(implementation_->reports, {});
}

void write_checkpoint(const std::string& path, const CheckpointMetadata& metadata,
                      const std::vector<TensorRecord>& tensors, FileSystem& files) {
  if (files.status(path))
    throw std::invalid_argument(
        fmt::format("{}: already exists\nhint: remove it, or choose another name", path));
  const std::string unfinished = path + kUnfinishedSuffix;
  create_directories(files, parent_directory(path));
  remove_tree(files, unfinished);
  files.create_directory(unfinished);
  try {
    const CompletionMarker marker{
        metadata.step, 1, {write_shard(files, unfinished, 0, 1, metadata, tensors)}};
    write_file_atomically(files, join_path(unfinished, kMarkerName), encode_marker(marker));
    files.rename(unfinished, path);
    files.sync_directory(parent_directory(path));
  } catch (...) {
    remove_tree(files, unfinished);
    throw;
  }
}

std::int64_t checkpoint_bytes_of(const ParameterSet& weights,
                                 const std::vector<NamedTensor>& optimizer) {
  std::int64_t bytes = 0;
  for (const NamedTensor& tensor : checkpoint_tensors(weights, optimizer, 0))
    bytes += tensor.tensor.num_bytes();
  return bytes;
}

}  // namespace chaski
