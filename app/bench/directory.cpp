#include "app/bench/directory.h"

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fmt/core.h>
#include <mutex>
#include <stdexcept>
#include <unistd.h>

namespace chaski {
namespace {

constexpr std::chrono::milliseconds kPause{100};
constexpr int kMostRemovals = 1000;

}  // namespace

BenchDirectory::BenchDirectory(const std::string& parent) {
  const std::string where =
      parent.empty() ? std::filesystem::temp_directory_path().string() : parent;
  if (!std::filesystem::is_directory(where)) {
    throw std::invalid_argument(fmt::format("--dir {}: must be an existing folder", where));
  }
  std::string name = where + "/chaski-bench-XXXXXX";
  if (mkdtemp(name.data()) == nullptr) {
    throw std::runtime_error(
        fmt::format("{}: cannot create a folder in it: {}\nhint: --dir names another folder", where,
                    std::strerror(errno)));
  }
  path_ = name;
  watcher_ = std::jthread([this](const std::stop_token& end) { watch(end); });
}

BenchDirectory::~BenchDirectory() {
  // First: a watcher that is about to end the process does not let this go on, which may be on the
  // way from an error that the removed folder has caused.
  watcher_.request_stop();
  watcher_.join();
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void BenchDirectory::watch(const std::stop_token& end) {
  std::mutex mutex;
  std::unique_lock lock(mutex);
  std::condition_variable_any nothing;
  // A handler cannot wake anybody without more ado; this is prompt enough for people, and too
  // seldom to disturb what is measured.
  while (!signal_.requested()) {
    nothing.wait_for(lock, end, kPause, [] { return false; });
    if (end.stop_requested()) return;
  }
  // What is being written meanwhile may come to lie in a folder that was just emptied.
  std::error_code error;
  for (int i = 0; i < kMostRemovals; ++i) {
    std::filesystem::remove_all(path_, error);
    if (!error) break;
  }
  _exit(128 + signal_.number());
}

}  // namespace chaski
