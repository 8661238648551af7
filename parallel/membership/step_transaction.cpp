#include "parallel/membership/step_transaction.h"

#include <fmt/format.h>
#include <stdexcept>
#include <utility>

namespace chaski {
namespace {

constexpr std::uint32_t kNonFinite = 1U << 0;
constexpr std::uint32_t kStop = 1U << 1;
constexpr std::uint32_t kFailed = 1U << 2;
constexpr std::uint32_t kPeerLost = 1U << 3;
// The rest of the flags carries a short digest of (step, version) and its complement: a bit that is
// set in both after the or was set by processes that disagree.
constexpr int kDigestBits = 13;
constexpr int kDigestShift = 4;
constexpr std::uint32_t kDigestMask = (1U << kDigestBits) - 1;

std::uint32_t digest_of(std::int64_t step, int version) {
  const auto value = static_cast<std::uint64_t>(step) * 31 + static_cast<std::uint64_t>(version);
  return static_cast<std::uint32_t>(value) & kDigestMask;
}

}  // namespace

StepTransaction::StepTransaction(Communicator& communicator, std::function<void()> drop_work)
    : communicator_(communicator), drop_work_(std::move(drop_work)) {}

void StepTransaction::begin(std::int64_t step, int version) {
  if (state_ != State::closed) {
    throw std::logic_error(fmt::format("step {} begins while step {} is open", step, step_));
  }
  step_ = step;
  version_ = version;
  verdict_ = {};
  state_ = State::open;
}

std::uint32_t StepTransaction::vote(std::uint32_t flags) {
  state_ = State::voted;
  const std::uint32_t digest = digest_of(step_, version_);
  flags |= digest << kDigestShift;
  flags |= (~digest & kDigestMask) << (kDigestShift + kDigestBits);
  return communicator_.agree(flags);
}

StepVerdict StepTransaction::verdict_of(std::uint32_t flags) {
  StepVerdict verdict;
  verdict.non_finite = (flags & kNonFinite) != 0;
  verdict.stop = (flags & kStop) != 0;
  verdict.failed = (flags & kFailed) != 0;
  verdict.commit = (flags & (kNonFinite | kFailed | kPeerLost)) == 0;
  return verdict;
}

StepVerdict StepTransaction::agree(const StepVote& vote_here) {
  if (state_ != State::open) throw std::logic_error("a vote without an open step");
  const std::uint32_t all =
      vote((vote_here.non_finite ? kNonFinite : 0) | (vote_here.stop_requested ? kStop : 0));
  const std::uint32_t set = all >> kDigestShift & kDigestMask;
  const std::uint32_t unset = all >> (kDigestShift + kDigestBits) & kDigestMask;
  if ((set & unset) != 0) {
    throw std::logic_error(fmt::format(
        "processes vote on different steps (here step {}, version {})", step_, version_));
  }
  verdict_ = verdict_of(all);
  if ((all & (kPeerLost | kFailed)) != 0) {
    throw PeerFailure(fmt::format("a process gave up step {}", step_), communicator_.dead_ranks());
  }
  state_ = State::closed;
  return verdict_;
}

StepVerdict StepTransaction::abort(StepFailure failure) noexcept {
  if (state_ == State::closed) return {};
  communicator_.revoke();
  if (drop_work_) drop_work_();
  if (state_ == State::open) {
    const std::uint32_t flag = failure == StepFailure::here ? kFailed : kPeerLost;
    verdict_ = verdict_of(flag);
    try {
      // Without recovery a lost peer means the end of the job, and a vote might wait for it for
      // ever.
      if (communicator_.survives_failures()) verdict_ = verdict_of(vote(flag));
    } catch (const std::exception&) {
      // The vote fails wherever it is counted, which is what it was for.
    }
  }
  state_ = State::closed;
  return verdict_;
}

}  // namespace chaski
