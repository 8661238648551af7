#pragma once

#include <string>
#include <thread>

#include "app/job/stop_signal.h"

namespace chaski {

// A folder of this process's own, removed with everything in it at the end of its life, and when
// SIGTERM, SIGINT or SIGUSR1 end the process, which then leaves with 128 + the signal's number.
// Make it before the first parallel region (see StopSignal).
class BenchDirectory {
 public:
  // Creates it in `parent`; empty: in the system's folder for temporary files. Throws
  // std::invalid_argument when `parent` is no folder, std::runtime_error when it cannot be created.
  explicit BenchDirectory(const std::string& parent);
  ~BenchDirectory();
  BenchDirectory(const BenchDirectory&) = delete;
  BenchDirectory& operator=(const BenchDirectory&) = delete;

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  void watch(const std::stop_token& end);

  std::string path_;
  StopSignal signal_;
  std::jthread watcher_;
};

}  // namespace chaski
