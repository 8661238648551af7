#pragma once

#include <chrono>
#include <mpi.h>
#include <vector>

namespace chaski {

// A message on its way, completed through Communicator::test or wait. Its memory is the caller's
// and must live as long as the request; one that is destroyed is given up first.
class Request {
 public:
  // How long a message that is arriving may take to end after it was given up: longer than a peer
  // computes between two calls of MPI.
  static constexpr std::chrono::milliseconds kReceiveLimit{30000};

  Request() = default;
  Request(Request&& other) noexcept;
  Request& operator=(Request&& other) noexcept;
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;
  ~Request() { give_up(); }

  bool active() const { return handle_ != MPI_REQUEST_NULL || !more_.empty(); }

  // Gives up a message; nothing is written to its memory afterwards. A receive is taken back while
  // nothing has come for it, and waited for where something is arriving. Where that does not end
  // within `limit`, because the peer hangs, MPI may write at any time: the process ends
  // (end_process). What was sent is waited for a moment and then left to MPI, which may read the
  // memory until the communicator is revoked or the process ends: a peer that has given up, too,
  // never takes it.
  void give_up(std::chrono::milliseconds limit = kReceiveLimit) noexcept;

 private:
  friend class Communicator;
  Request(bool receives, int peer) : receives_(receives), peer_(peer) {}
  void add(MPI_Request handle);
  void give_up(MPI_Request& part, std::chrono::steady_clock::time_point deadline) noexcept;

  MPI_Request handle_ = MPI_REQUEST_NULL;
  std::vector<MPI_Request> more_;  // further parts of a message longer than one MPI call may carry
  bool receives_ = false;
  int peer_ = -1;
};

}  // namespace chaski
