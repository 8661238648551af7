#pragma once

#include <string>

namespace chaski {

// Holds a run's output directory for this process (by flock on `<directory>/.lock`), so that two
// jobs never write into one directory. The lock of a dead process is free; its file may stay.
// Taken by one process of a job.
class OutputLock {
 public:
  // Creates the directory when missing. Throws std::invalid_argument naming the process and host
  // that hold it, std::runtime_error when the directory cannot be written.
  explicit OutputLock(const std::string& directory);
  ~OutputLock();  // releases and removes the file
  OutputLock(const OutputLock&) = delete;
  OutputLock& operator=(const OutputLock&) = delete;

 private:
  std::string path_;
  int descriptor_ = -1;
};

}  // namespace chaski
