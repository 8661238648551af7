#include "parallel/reduction/scalar_exchange.h"

#include <algorithm>
#include <fmt/format.h>
#include <stdexcept>

namespace chaski {

ScalarExchange::ScalarExchange(Communicator& communicator, std::vector<int> ranks, int tag)
    : communicator_(communicator), tag_(tag) {
  const auto self = std::find(ranks.begin(), ranks.end(), communicator.rank());
  if (self == ranks.end() || !std::is_sorted(ranks.begin(), ranks.end()) || ranks.size() < 2) {
    throw std::invalid_argument(fmt::format(
        "an exchange of rank {} needs ascending ranks, its own among them", communicator.rank()));
  }
  if (tag > communicator.max_tag()) {
    throw std::invalid_argument(
        fmt::format("parallel: so many stages need message tag {}; this MPI allows up to {}", tag,
                    communicator.max_tag()));
  }
  position_ = static_cast<std::size_t>(self - ranks.begin());
  ranks.erase(self);
  peers_.resize(ranks.size());
  for (std::size_t i = 0; i < ranks.size(); ++i) peers_[i].rank = ranks[i];
  own_.reserve(kMaxScalars);
}

void ScalarExchange::start(std::span<const double> values) {
  if (std::ssize(values) > kMaxScalars) {
    throw std::invalid_argument(
        fmt::format("{} scalars to reduce; at most {}", values.size(), kMaxScalars));
  }
  own_.assign(values.begin(), values.end());
  if (own_.empty()) return;
  const auto bytes = static_cast<std::int64_t>(values.size_bytes());
  for (Peer& peer : peers_) {
    peer.in = communicator_.irecv(peer.values.data(), bytes, peer.rank, tag_);
    peer.out = communicator_.isend(own_.data(), bytes, peer.rank, tag_);
  }
}

bool ScalarExchange::complete() {
  bool done = true;
  for (Peer& peer : peers_) {
    done = communicator_.test(peer.in) && done;
    done = communicator_.test(peer.out) && done;
  }
  return done;
}

void ScalarExchange::take_sums(std::span<double> sums) {
  std::fill(sums.begin(), sums.end(), 0.0);
  for (std::size_t position = 0; position <= peers_.size(); ++position) {
    const double* values = own_.data();
    if (position != position_) {
      values = peers_[position < position_ ? position : position - 1].values.data();
    }
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += values[i];
  }
}

bool ScalarExchange::drain(std::chrono::milliseconds limit) noexcept {
  bool ended = true;
  for (Peer& peer : peers_) {
    for (Request* request : {&peer.in, &peer.out}) {
      if (communicator_.drain({request, 1}, limit)) continue;
      ended = false;
      limit = std::chrono::milliseconds(0);
    }
  }
  return ended;
}

}  // namespace chaski
