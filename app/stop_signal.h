#pragma once

namespace chaski {

// Turns SIGTERM, SIGINT and SIGUSR1 into a request to save and end, which the training loop asks
// for once a step. A further SIGTERM or SIGINT ends the process at once with 128 + its number (143,
// 130), unless it comes within a second of the first: Ctrl-C may reach a process from the terminal
// and from a launcher both. SIGUSR1 is there for Open MPI 5, whose mpirun passes it on to all
// processes, but kills them half a second after it got SIGTERM or SIGINT itself, which is too short
// for a save. One at a time exists in a process; its end restores what the signals did before.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  bool requested() const { return number() != 0; }
  int number() const;        // SIGTERM, SIGINT, SIGUSR1, or 0
  const char* name() const;  // "SIGTERM", "SIGINT", "SIGUSR1", or ""
};

}  // namespace chaski
