#pragma once

#include <chrono>
#include <cstdint>
#include <cuda_runtime_api.h>
#include <functional>
#include <nccl.h>
#include <string>
#include <vector>

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "parallel/mpi/communicator.h"

namespace chaski::nccl {

// A place in a stream's work.
class Event {
 public:
  Event();
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(cudaStream_t stream);
  // What is queued on `stream` from now on waits for the place last recorded.
  void hold(cudaStream_t stream) const;
  bool reached() const;

 private:
  cudaEvent_t event_ = nullptr;
};

struct GroupOptions {
  std::vector<int> ranks;  // ascending, this process among them
  int tag = 0;             // of the messages by which the group meets
  std::string purpose;     // "the gradients of stage 0"
  int max_blocks = 0;      // of the GPU that a kernel of NCCL may take; 0: as it likes
  // How long what was given up may take to end, and what is done with a process where it does not,
  // whose GPU may write to its memory at any time; {}: it says so and ends.
  std::chrono::milliseconds abort_limit{30000};
  std::function<void(const std::string& what)> on_stuck;
};

// Some processes that NCCL joins, and the stream on which it works for them.
//
// A kernel of NCCL runs until the other processes' have come, for ever if one is dead. So no
// process may wait inside CUDA for such a kernel: the device's main stream never follows this one;
// the host waits, by wait_until(), where failures are seen, and queues what comes next afterwards.
// For the same reason the calls of NCCL do not block, but are polled.
class Group {
 public:
  Group(Communicator& communicator, Device& device, const GroupOptions& options);
  // Leaves the group without waiting for the others.
  ~Group();
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  int size() const { return static_cast<int>(options_.ranks.size()); }
  cudaStream_t stream() const { return stream_; }

  // Meets the others, who must all call it, once, and exchanges by `trial` what it queues, whose
  // content does not matter. NCCL joins processes to send to each other, or to sum in one of its
  // ways, when they first do so, each call waiting for the other sides': here everybody is at the
  // same place. Throws PeerFailure, or std::runtime_error with NCCL's own text.
  void connect(const std::function<void()>& trial);

  // These queue on stream(), in the same order on all processes, and return when the work is
  // queued. f32 or bf16 tensors.
  void all_reduce_sum(const Tensor& tensor);  // in place
  void send(const Tensor& tensor, int rank);
  void receive(const Tensor& tensor, int rank);

  // What is queued on stream() from now on waits for what the device has so far.
  void follow_device();
  // Waits until `event` is reached.
  void wait(const Event& event);
  // Throws what has gone wrong meanwhile.
  void check_health();

  // Ends all that is in flight, and the group. See GroupOptions::on_stuck for where the GPU does
  // not end it.
  void abort() noexcept;

 private:
  void join();
  void complete(ncclResult_t result, const char* what);
  [[noreturn]] void fail(ncclResult_t result, const char* what);
  void poll_peers();
  void leave() noexcept;
  std::string stuck_text() const;

  Communicator& communicator_;
  Device& device_;
  GroupOptions options_;
  int position_;  // of this process
  ncclComm_t nccl_ = nullptr;
  cudaStream_t stream_ = nullptr;
  Event device_place_;
  int polls_ = 0;
};

}  // namespace chaski::nccl
