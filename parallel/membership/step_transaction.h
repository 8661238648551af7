#pragma once

#include <cstdint>
#include <functional>

#include "parallel/mpi/communicator.h"

namespace chaski {

// What a process says about its part of a step.
struct StepVote {
  bool non_finite = false;      // a gradient or the loss is NaN or infinite here
  bool stop_requested = false;  // this process was asked to end (SIGTERM, SIGINT)
  bool failed = false;          // cannot complete the step for another reason
};

// What all processes decided: the same everywhere.
struct StepVerdict {
  bool commit = false;      // everybody completed the step with finite numbers: apply it
  bool non_finite = false;  // somebody has non-finite numbers: apply nothing
  bool stop = false;        // end after this step
  bool failed = false;      // somebody cannot complete the step: apply nothing
};

// A training step is applied by all live processes or by none. Usage:
//
//   transaction.begin(step, roster.version());
//   try {
//     ... forward, backward, reduce ...
//     verdict = transaction.agree(vote);
//   } catch (const PeerFailure&) {
//     transaction.abort();  // everybody's step is off; a new roster runs the same step again
//   }
//   if (verdict.commit) optimizer.step(...);
class StepTransaction {
 public:
  // `drop_work` ends what is in flight and drops partial gradients (abort of executor and reducer).
  StepTransaction(Communicator& communicator, std::function<void()> drop_work);

  // Throws std::logic_error when a step is open.
  void begin(std::int64_t step, int version);
  // Ends the step by a vote of all live processes. Throws PeerFailure on all of them when a process
  // died or gave up the step after a failure (then call abort), and std::logic_error when processes
  // are at different steps or versions.
  StepVerdict agree(const StepVote& vote);
  // Gives up the step after a failure: ends what others wait for, calls drop_work, and votes, if
  // this process has not, so that the step fails for all. Does nothing without a step.
  void abort() noexcept;

  bool open() const { return state_ != State::closed; }
  std::int64_t step() const { return step_; }
  int version() const { return version_; }

 private:
  enum class State { closed, open, voted };
  std::uint32_t vote(std::uint32_t flags);

  Communicator& communicator_;
  std::function<void()> drop_work_;
  std::int64_t step_ = -1;
  int version_ = 0;
  State state_ = State::closed;
};

}  // namespace chaski
