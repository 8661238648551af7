#pragma once

#include <csignal>
#include <thread>

namespace chaski {

// Turns SIGTERM, SIGINT and SIGUSR1 into a request to save and end, which the training loop asks
// for once a step. A further SIGTERM or SIGINT ends the process at once with 128 + its number (143,
// 130), unless it comes within a second of the first: Ctrl-C may reach a process from the terminal
// and from a launcher both. SIGUSR1 is there for Open MPI 5, whose mpirun passes it on to all
// processes, but kills them half a second after it got SIGTERM or SIGINT itself, which is too short
// for a save.
//
// A thread of its own receives them; the one that makes this, and all that it starts from then on,
// have them blocked. No handler may run on a thread that computes: oneDNN's kernels (2.6.3, seen in
// its sgemm with AVX-512) let the stack pointer point into a buffer on the heap, and the kernel
// would write the handler's frame over whatever lies before that buffer. So make this before the
// first parallel region. One at a time exists in a process; its end restores what the signals did
// before.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  bool requested() const { return number() != 0; }
  int number() const;        // SIGTERM, SIGINT, SIGUSR1, or 0
  const char* name() const;  // "SIGTERM", "SIGINT", "SIGUSR1", or ""

 private:
  sigset_t previous_mask_;
  int end_;  // an eventfd: the receiver's end
  std::thread receiver_;
};

}  // namespace chaski
