#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "parallel/mpi/communicator.h"

namespace chaski {

// Sums a few numbers over a group of processes by messages, each process for itself and in
// ascending order of ranks: the same bits everywhere.
class ScalarExchange {
 public:
  static constexpr std::int64_t kMaxScalars = 64;

  // `ranks` ascending, this process among them. Throws std::invalid_argument otherwise, or where
  // MPI does not allow the tag.
  ScalarExchange(Communicator& communicator, std::vector<int> ranks, int tag);

  // Throws std::invalid_argument for more than kMaxScalars.
  void start(std::span<const double> values);
  // True when everything has arrived and left (or nothing was started). Throws PeerFailure.
  bool complete();
  // The sums of what was started; ends the exchange.
  void take_sums(std::span<double> sums);
  // As Communicator::drain.
  bool drain(std::chrono::milliseconds limit) noexcept;

 private:
  struct Peer {
    int rank = -1;
    std::array<double, kMaxScalars> values{};
    Request in;
    Request out;
  };

  Communicator& communicator_;
  int tag_;
  std::size_t position_;     // of this process in the group
  std::vector<Peer> peers_;  // ascending by rank, without this process
  std::vector<double> own_;
};

}  // namespace chaski
