#pragma once

namespace chaski {

// Turns SIGTERM and SIGINT into a request to save and end, which the training loop asks for once a
// step. A further signal ends the process at once with 128 + its number (143, 130), unless it comes
// within a second of the first: Ctrl-C reaches a process from the terminal and from mpirun both.
// One at a time exists in a process; its end restores what the signals did before.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  bool requested() const { return number() != 0; }
  int number() const;        // SIGTERM, SIGINT, or 0
  const char* name() const;  // "SIGTERM", "SIGINT", or ""
};

}  // namespace chaski
