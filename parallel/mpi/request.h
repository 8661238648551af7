#pragma once

#include <mpi.h>
#include <vector>

namespace chaski {

// A message (or small collective) on its way. Completed through Communicator::test or wait. An
// unfinished request that is destroyed is given up: its buffer must outlive the communicator.
class Request {
 public:
  Request() = default;
  Request(Request&& other) noexcept;
  Request& operator=(Request&& other) noexcept;
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;
  ~Request();

  bool active() const { return handle_ != MPI_REQUEST_NULL || !more_.empty(); }

 private:
  friend class Communicator;
  void add(MPI_Request handle);
  void release() noexcept;

  MPI_Request handle_ = MPI_REQUEST_NULL;
  std::vector<MPI_Request> more_;  // further parts of a message longer than one MPI call may carry
  int peer_ = -1;                  // -1: all
};

}  // namespace chaski
