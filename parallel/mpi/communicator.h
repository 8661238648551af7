#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <mpi.h>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/device/tensor.h"
#include "parallel/mpi/request.h"
#include "parallel/mpi/runtime.h"

namespace chaski {

// Another process of the job died or was declared dead, or a process that knows of one revoked the
// communicator. The step that was running did not happen; nothing in flight may be relied upon.
class PeerFailure : public std::runtime_error {
 public:
  PeerFailure(const std::string& what, std::vector<int> ranks)
      : std::runtime_error(what), ranks_(std::move(ranks)) {}
  // Ranks, in the communicator that threw, that are known to be dead; may be empty.
  const std::vector<int>& ranks() const { return ranks_; }

 private:
  std::vector<int> ranks_;
};

// What one round of polling achieved.
enum class Progress { none, some, done };

// The processes that take part in a job, at one version of its Roster, and every way in which they
// talk. Nothing blocks inside MPI: each wait is a loop that tests, sees failures (PeerFailure) and
// calls the wait callback. Not thread-safe: one thread of a process talks to MPI.
class Communicator {
 public:
  // All processes that mpirun started, under an own context.
  explicit Communicator(MpiRuntime& runtime);
  // Takes over a communicator that somebody made, e.g. the survivors of a failure.
  Communicator(MpiRuntime& runtime, MPI_Comm comm);
  // Process `rank` of a job of `size` processes of which none is there: without MPI. Messages and
  // collectives are complete at once, with the data as they are, and what would be sent is counted.
  Communicator(int rank, int size);
  ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  MPI_Comm handle() const { return comm_; }
  MpiRuntime& runtime() const { return *runtime_; }
  // Whether others are there at all.
  bool is_dry() const { return runtime_ == nullptr; }
  bool survives_failures() const { return !is_dry() && runtime_->survives_failures(); }

  // Called now and then while waiting (at least every few milliseconds); may throw to give up the
  // wait, e.g. at a deadline or on a signal.
  void set_wait_callback(std::function<void()> callback) { wait_callback_ = std::move(callback); }

  // Point to point. Messages between two processes with the same tag arrive in the order in which
  // they were sent. `tag` is 0 … max_tag(). The memory must stay valid until the request is
  // complete. Any size; both sides must name the same number of bytes.
  Request isend(const void* data, std::int64_t bytes, int to, int tag);
  Request irecv(void* data, std::int64_t bytes, int from, int tag);
  Request isend(const Tensor& tensor, int to, int tag);  // CPU tensors
  Request irecv(const Tensor& tensor, int from, int tag);
  int max_tag() const { return max_tag_; }

  // What was sent to a process under a tag, of a dry communicator.
  struct Sent {
    int to;
    int tag;
    std::int64_t bytes;
  };
  const std::vector<Sent>& sent() const { return sent_; }
  // For what does not go through messages.
  void count_sent(std::int64_t bytes, int to, int tag);

  // True when complete (or not active). Gives MPI the chance to make progress.
  bool test(Request& request);
  void wait(Request& request);
  void wait_all(std::span<Request> requests);
  // Calls `step` until it says done; for whoever drives several requests by test(). Pauses longer
  // and longer while it says none.
  void wait_until(const std::function<Progress()>& step);
  // Lets MPI make progress on everything in flight.
  void progress();
  // For whoever waits in wait_until() for something other than requests, which would tell him:
  // throws PeerFailure when a process is known to be dead. Never where failures are not survived.
  void throw_if_peer_died();

  // Collectives: every process must call them in the same order. Sums are in place, in an order
  // that depends on the number of processes only: the same bits on all of them and in every run.
  Request iall_reduce_sum(float* data, std::int64_t count);
  Request iall_reduce_sum(double* data, std::int64_t count);
  void all_reduce_sum(std::span<float> data);
  void all_reduce_sum(std::span<double> data);
  void all_reduce_sum(std::span<std::int64_t> data);
  double all_reduce_max(double value);
  void all_reduce_max(std::span<std::int64_t> data);
  void broadcast(void* data, std::int64_t bytes, int root);
  void broadcast(std::string& text, int root);
  // The texts of all processes by rank, on the root; empty elsewhere.
  std::vector<std::string> gather(const std::string& text, int root);
  void barrier();
  // The bitwise or of all processes' flags. Where failures are survived, it returns the same on all
  // processes or throws PeerFailure on all of them, even when some die during the call. Bits 0
  // … 29.
  std::uint32_t agree(std::uint32_t flags);

  // Tells every process, also those that wait for someone who is alive, that this communicator is
  // over: all that is pending on it ends with PeerFailure. No-op where failures are not survived.
  void revoke() noexcept;
  // Ranks known to be dead. Empty where failures are not survived.
  std::vector<int> dead_ranks() const;
  // Waits for the requests' end whatever it is, at most `limit`; true when all ended. For aborted
  // steps: revoke first, where a peer may never answer.
  bool drain(std::span<Request> requests, std::chrono::milliseconds limit) noexcept;

 private:
  void check(int code, const char* what, int peer);
  void adopt();
  void throw_if_revoked();
  [[noreturn]] void throw_failure(const std::string& text);
  void wait_until(const std::function<Progress()>& step, bool heed_revocation);
  bool test_handle(MPI_Request& handle, int peer);
  Request iall_reduce(void* data, std::int64_t count, MPI_Datatype type, MPI_Op op);

  MpiRuntime* runtime_ = nullptr;
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
  int max_tag_ = 32767;
  bool broken_ = false;  // a peer failed or the communicator was revoked
  std::function<void()> wait_callback_;
  std::vector<Sent> sent_;
};

}  // namespace chaski
