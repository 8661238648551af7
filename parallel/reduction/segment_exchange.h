#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "parallel/mpi/communicator.h"
#include "parallel/reduction/gradient_exchange.h"

namespace chaski {

// The exchange of f32 tensors in host memory, built on messages: reduce-scatter, then all-gather,
// in segments, so that adding one segment overlaps with the transfer of others and data
// is added while it is in the cache. Each process owns an equal piece of every tensor: it gets the
// others' versions of the piece, adds them in ascending order of ranks, and sends the sum back to
// all. Compared with MPI_Iallreduce of Open MPI 5 it moves less over shared memory, is associated
// in a known order, and needs no communicator of the group, which a failure would invalidate. The
// same bits on every process and in every run.
class SegmentExchange final : public GradientExchange {
 public:
  // As create_gradient_exchange.
  SegmentExchange(Communicator& communicator, const std::vector<int>& ranks, int stage,
                  Device& device, const std::vector<Tensor>& tensors);

  void start(std::int64_t count) override;
  void advance() override { move(); }
  void finish() override;
  void abort() noexcept override;
  std::int64_t bytes_per_round() const override { return bytes_per_round_; }

 private:
  static constexpr int kWindow = 4;  // segments in flight per stream and peer

  struct Segment {
    float* data = nullptr;
    std::int64_t count = 0;
    std::int64_t bytes() const { return count * static_cast<std::int64_t>(sizeof(float)); }
  };
  // Messages that are started and complete in order, kWindow at a time.
  struct Channel {
    std::array<Request, kWindow> requests;
    std::int64_t started = 0;
    std::int64_t done = 0;
    bool full() const { return started - done == kWindow; }
    Request& request(std::int64_t i) { return requests[static_cast<std::size_t>(i % kWindow)]; }
  };
  struct Peer {
    int rank = -1;
    std::size_t position = 0;  // in the group
    Channel parts_out;         // my version of its piece
    Channel parts_in;          // its version of my piece
    Channel sums_out;          // my piece's sums
    Channel sums_in;           // its piece's sums
    Tensor incoming;           // [kWindow · segment]
  };

  void cut_into_segments(const std::vector<Tensor>& tensors);
  bool move();  // whether something moved
  void move_parts(Peer& peer);
  void sum_segments();
  Tensor incoming(Peer& peer, std::int64_t i, std::int64_t count) const;
  void poll(Channel& channel);
  std::int64_t started_segments(std::size_t position) const;
  bool complete() const;
  std::int64_t num_messages_done() const;
  void reset();

  Communicator& communicator_;
  Device& device_;
  int stage_;
  std::size_t position_ = 0;  // of this process in the group
  std::int64_t segment_elements_ = 0;
  Buffer buffer_;            // of what is in flight, and so destroyed after it
  std::vector<Peer> peers_;  // ascending by rank, without this process
  // By owner's position: the segments of its pieces of all tensors, and where each tensor's begin.
  std::vector<std::vector<Segment>> segments_;
  std::vector<std::vector<std::int64_t>> tensor_begin_;
  std::int64_t num_started_ = 0;
  std::int64_t num_summed_ = 0;
  std::int64_t bytes_per_round_ = 0;
};

}  // namespace chaski
