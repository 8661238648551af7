#pragma once

#include <cstdint>
#include <functional>

#include "parallel/mpi/communicator.h"

namespace chaski {

// What a process says about its part of a step.
struct StepVote {
  bool non_finite = false;      // a gradient or the loss is NaN or infinite here
  bool stop_requested = false;  // this process was asked to end (SIGTERM, SIGINT)
};

// What all processes decided: the same everywhere.
struct StepVerdict {
  bool commit = false;      // everybody completed the step with finite numbers: apply it
  bool non_finite = false;  // somebody has non-finite numbers: apply nothing
  bool stop = false;        // end after this step
  bool failed = false;      // somebody gave up for an error of its own: nobody can go on
};

// Why a process gives up a step.
enum class StepFailure {
  peer,  // PeerFailure: a peer is dead or has given up
  here,  // any other error, e.g. std::bad_alloc
};

// A training step is applied by all live processes or by none. Usage:
//
//   transaction.begin(step, roster.version());
//   try {
//     ... forward, backward, reduce ...
//     verdict = transaction.agree(vote);
//   } catch (const PeerFailure&) {
//     verdict = transaction.abort(StepFailure::peer);
//   } catch (...) {
//     transaction.abort(StepFailure::here);
//     throw;
//   }
//   if (verdict.commit) optimizer.step(...);
//   else if (verdict.failed) ... end the run: another process has, for an error that it reports
//   else ... where a peer failed: a new roster of those alive runs the same step again
class StepTransaction {
 public:
  // `drop_work` ends what is in flight and drops partial gradients (abort of executor and reducer).
  StepTransaction(Communicator& communicator, std::function<void()> drop_work);

  // The step that was begun last; -1: none.
  std::int64_t step() const { return step_; }
  // Throws std::logic_error when a step is open.
  void begin(std::int64_t step, int version);
  // Ends the step by a vote of all live processes. Throws PeerFailure on all of them when a process
  // died or gave up the step after a peer's failure (then call abort), and std::logic_error when
  // processes are at different steps or versions.
  StepVerdict agree(const StepVote& vote);
  // Gives up the step: ends what others wait for, calls drop_work, and votes, if this process has
  // not, so that the step fails for all. Nothing is committed; `failed` is the same on all who are
  // alive, whichever way each gave up. Where failures are not survived nobody votes, and each
  // process knows its own failure only. Does nothing without a step.
  StepVerdict abort(StepFailure failure) noexcept;

 private:
  enum class State { closed, open, voted };
  static StepVerdict verdict_of(std::uint32_t flags);
  std::uint32_t vote(std::uint32_t flags);

  Communicator& communicator_;
  std::function<void()> drop_work_;
  std::int64_t step_ = -1;
  int version_ = 0;
  State state_ = State::closed;
  StepVerdict verdict_;  // of the step, once it was voted on
};

}  // namespace chaski
