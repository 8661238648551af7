#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mpi.h>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/device/tensor.h"
#include "parallel/mpi/request.h"
#include "parallel/mpi/runtime.h"

namespace chaski {

// What the processes say to each other does not arrive: one of them or the network has failed.
class CommunicationError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Another process of the job died or was declared dead, or a process that knows of one revoked the
// communicator. The step that was running did not happen; nothing in flight may be relied upon.
class PeerFailure : public CommunicationError {
 public:
  PeerFailure(const std::string& what, std::vector<int> ranks)
      : CommunicationError(what), ranks_(std::move(ranks)) {}
  // Ranks, in the communicator that threw, that are known to be dead; may be empty.
  const std::vector<int>& ranks() const { return ranks_; }

 private:
  std::vector<int> ranks_;
};

// What one round of polling achieved.
enum class Progress { none, some, done };

// The processes that take part in a job, at one version of its Roster, and every way in which they
// talk. Nothing blocks inside MPI, but for those that make a communicator or ask for the host: each
// wait is a loop that tests, sees failures (PeerFailure) and calls the wait callback. Not
// thread-safe: one thread of a process talks to MPI.
//
// Whose memory MPI uses: that of a message is the caller's and must outlive its Request, after
// which nothing is written to it. Collectives cannot be taken back, so they run on memory of the
// communicator's: data is copied in, and out on success. One that was left unfinished, because a
// wait has thrown, is kept with its memory until it ends or the process does.
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
  // For what is not offered here. A collective on it counts as one of this communicator.
  MPI_Comm handle() const { return comm_; }
  MpiRuntime& runtime() const { return *runtime_; }
  // Whether others are there at all.
  bool is_dry() const { return runtime_ == nullptr; }
  bool survives_failures() const { return !is_dry() && runtime_->survives_failures(); }

  // Called now and then while waiting (at least every few milliseconds); may throw to give up the
  // wait, e.g. at a deadline or on a signal.
  void set_wait_callback(std::function<void()> callback) { wait_callback_ = std::move(callback); }

  // Point to point. Messages between two processes with the same tag arrive in the order in which
  // they were sent. `tag` is 0 … 32767, kGatherTag excepted. Any size; both sides must name the
  // same number of bytes.
  Request isend(const void* data, std::int64_t bytes, int to, int tag);
  Request irecv(void* data, std::int64_t bytes, int from, int tag);
  Request isend(const Tensor& tensor, int to, int tag);  // CPU tensors
  Request irecv(const Tensor& tensor, int from, int tag);

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
  // Calls `step` until it says done; for whoever drives several requests by test(). Pauses longer
  // and longer while it says none.
  void wait_until(const std::function<Progress()>& step) { wait_until(step, true); }
  // For whoever waits in wait_until() for something other than requests, which would tell him:
  // throws PeerFailure when a process is known to be dead or has revoked the communicator. Never
  // where failures are not survived.
  void throw_if_peer_died();

  // Collectives: every process must call them in the same order. Sums are in place, in an order
  // that depends on the number of processes only: the same bits on all of them and in every run.
  void all_reduce_sum(std::span<double> data);
  void all_reduce_sum(std::span<std::int64_t> data);
  double all_reduce_max(double value);
  void all_reduce_max(std::span<std::int64_t> data);
  void broadcast(void* data, std::int64_t bytes, int root);
  void broadcast(std::string& text, int root);
  static constexpr int kGatherTag = 0;  // of gather()'s messages
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
  // Those who are alive, in the order of their ranks here: after a failure, to go on without the
  // dead. All who are alive must call it. Throws std::runtime_error where failures are not
  // survived.
  std::unique_ptr<Communicator> shrink();

  // The ranks of the processes on this process's host, ascending, its own among them. All must call
  // it.
  std::vector<int> ranks_on_this_host();

 private:
  // A collective on its way, in memory of its own.
  struct Collective {
    std::vector<std::byte> memory;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  // Begins a collective on the memory named; as MPI's own functions return.
  using StartCollective = std::function<int(void* memory, int count, MPI_Request* request)>;

  // Takes over a communicator that was made.
  void check(int code, const char* what, int peer);
  void adopt();
  // Lets MPI make progress on everything in flight.
  void progress();
  bool is_revoked() const;
  void throw_if_revoked();
  [[noreturn]] void throw_failure(const std::string& text);
  void wait_until(const std::function<Progress()>& step, bool heed_revocation);
  bool test_handle(MPI_Request& handle, int peer);
  void run_collective(const char* what, void* data, std::int64_t count, int element_bytes,
                      const StartCollective& start);
  void run_part(const char* what, std::span<std::byte> data, int count,
                const StartCollective& start, bool heed_revocation = true);
  void forget_ended_collectives();
  void all_reduce(void* data, std::int64_t count, MPI_Datatype type, MPI_Op op);

  MpiRuntime* runtime_ = nullptr;
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
  bool broken_ = false;  // a peer failed or the communicator was revoked
  std::function<void()> wait_callback_;
  std::vector<Sent> sent_;
  std::vector<std::unique_ptr<Collective>> collectives_;  // unfinished
};

}  // namespace chaski
