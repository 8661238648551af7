#pragma once

#include <chrono>
#include <cuda_runtime_api.h>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <thread>
#include <vector>

// Streams, events and captures: what streams.cpp, events.cpp and graphs.cpp share.

namespace chaski::cuda_model {

/// An operation of a graph and those that must have run before it.
struct Node {
  std::function<void()> work;
  std::vector<int> after;
};

/// What a stream does next.
struct Work {
  std::function<void()> run;
  /// Null: at any time. Else it runs once this has returned true; asked again and again, it may do
  /// a part each time.
  std::function<bool()> ready;
  bool external = false;  // needs other processes
};

/// Streams that record instead of running.
struct Capture {
  cudaStream_t origin = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id owner;
  std::set<cudaStream_t> streams;
  std::vector<Node> nodes;
  bool spoilt = false;
};

/// A place in a stream's work, or in a capture.
struct Mark {
  cudaStream_t stream = nullptr;
  bool reached = false;
  bool asked = false;  // a query has answered "not yet"
  std::chrono::steady_clock::time_point time;
  std::shared_ptr<Capture> capture;  // recorded while captured
  std::vector<int> frontier;
};

/// All streams that exist.
std::set<cudaStream_t>& streams();
/// All captures that have not ended.
std::set<std::shared_ptr<Capture>>& captures();
cudaStream_t default_stream();
/// The stream of a handle; the program ends if there is none.
cudaStream_t resolve(cudaStream_t handle);

/// As submit().
cudaError_t submit_work(cudaStream_t handle, Work work);
/// Runs what the stream has queued, with what it waits for in other streams. False if something
/// waits for another process.
bool run_all(cudaStream_t stream);
bool run_until(const std::shared_ptr<Mark>& mark);
/// Runs what is queued for other processes and what that waits for, as far as it goes, but no more.
void serve_other_processes();
/// A moment at which, if the model has been told so, a random stream runs that may be far ahead of
/// the others, or behind.
void let_streams_get_ahead();
/// Repeats it until it returns true; other streams, threads and processes go on meanwhile.
void wait_for(const std::function<bool()>& attempt);

/// Marks a capture as failed; returns the error.
cudaError_t spoil(const std::shared_ptr<Capture>& capture, cudaError_t error);

}  // namespace chaski::cuda_model

struct CUstream_st {
  bool blocking = true;  // ordered with the default stream
  std::deque<chaski::cuda_model::Work> queue;
  std::shared_ptr<chaski::cuda_model::Capture> capture;
  std::vector<int> frontier;  // what the next captured operation follows
  bool asked = false;         // a query has answered "not yet"
};

struct CUevent_st {
  std::shared_ptr<chaski::cuda_model::Mark> mark;
  bool timed = true;
};
