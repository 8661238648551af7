#include "parallel/nccl/group.h"

#include <algorithm>
#include <fmt/format.h>
#include <future>
#include <memory>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>

#include "kernels/device/cuda_context.h"
#include "parallel/membership/roster.h"
#include "parallel/mpi/end_process.h"
#include "parallel/nccl/library.h"
#include "parallel/nccl/nccl.h"

namespace chaski {
namespace nccl {
namespace {

// How long a process that leaves in order waits for its own part to end.
constexpr std::chrono::milliseconds kLeaveLimit{1000};
// Looking for dead processes costs more than looking at an event.
constexpr int kPollsBetweenLooks = 32;

using Deadline = std::chrono::steady_clock::time_point;

ncclDataType_t type_of(const Tensor& tensor) {
  if (tensor.dtype() == DType::f32) return ncclFloat32;
  if (tensor.dtype() == DType::bf16) return ncclBfloat16;
  throw std::logic_error(fmt::format("NCCL is not asked for {} here", name_of(tensor.dtype())));
}

std::size_t count_of(const Tensor& tensor) {
  return static_cast<std::size_t>(tensor.num_elements());
}

ncclUniqueId make_id() {
  ncclUniqueId id{};
  if (library().GetUniqueId(&id) == ncclSuccess) return id;
  throw std::runtime_error(fmt::format(
      "NCCL: starting failed: {}\nhint: NCCL_DEBUG=WARN in the environment makes NCCL say more",
      library().GetLastError(nullptr)));
}

// The first of the ranks makes up the id by which they join and tells the others.
ncclUniqueId agree_on_id(Communicator& communicator, const std::vector<int>& ranks, int tag) {
  ncclUniqueId id{};
  std::vector<Request> requests;  // of `id`, and so given up before it goes
  if (communicator.rank() == ranks.front()) {
    id = make_id();
    for (std::size_t i = 1; i < ranks.size(); ++i) {
      requests.push_back(communicator.isend(&id, sizeof id, ranks[i], tag));
    }
  } else {
    requests.push_back(communicator.irecv(&id, sizeof id, ranks.front(), tag));
  }
  for (Request& request : requests) communicator.wait(request);
  return id;
}

// In a thread of its own, which NCCL may hold up for ever when the GPU or the network has failed.
bool aborts_by(Deadline deadline, ncclComm_t comm) {
  const auto ended = std::make_shared<std::promise<void>>();
  const std::future<void> end = ended->get_future();
  try {
    std::thread([ended, comm] {
      library().CommAbort(comm);
      ended->set_value();
    }).detach();
  } catch (const std::system_error&) {  // no thread is to be had
    library().CommAbort(comm);
    return true;
  }
  return end.wait_until(deadline) == std::future_status::ready;
}

bool ends_by(Deadline deadline, cudaStream_t stream) {
  while (cudaStreamQuery(stream) == cudaErrorNotReady) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  cudaGetLastError();  // it would be reported again by the next launch
  return true;
}

}  // namespace

Event::Event() {
  cuda::check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "creating an event");
}

void Event::record(cudaStream_t stream) {
  cuda::check(cudaEventRecord(event_, stream), "recording an event");
}

void Event::hold(cudaStream_t stream) const {
  cuda::check(cudaStreamWaitEvent(stream, event_, 0), "waiting for an event");
}

bool Event::reached() const {
  const cudaError_t status = cudaEventQuery(event_);
  if (status != cudaErrorNotReady) {
    cuda::check(status, "an exchange with other processes");
    return true;
  }
  cudaGetLastError();  // it would be reported again by the next launch
  return false;
}

Group::Group(Communicator& communicator, Device& device, const GroupOptions& options)
    : communicator_(communicator),
      device_(device),
      options_(options),
      position_(position_in(options.ranks, communicator.rank())) {
  cuda::check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
}

Group::~Group() {
  leave();
  cudaStreamDestroy(stream_);
}

void Group::connect(const std::function<void()>& trial) {
  try {
    join();
    follow_device();  // which may still use the memory of the trial for what was there before
    trial();
    Event done;
    done.record(stream_);
    wait(done);
  } catch (...) {
    abort();
    throw;
  }
}

void Group::join() {
  const ncclUniqueId id = agree_on_id(communicator_, options_.ranks, options_.tag);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  if (options_.max_blocks > 0) config.maxCTAs = options_.max_blocks;
  cuda::check(cudaSetDevice(cuda::context_of(device_).ordinal()), "choosing the device");
  complete(library().CommInitRankConfig(&nccl_, size(), id, position_, &config), "joining");
}

void Group::all_reduce_sum(const Tensor& tensor) {
  complete(library().AllReduce(tensor.raw(), tensor.raw(), count_of(tensor), type_of(tensor),
                               ncclSum, nccl_, stream_),
           "summing");
}

void Group::send(const Tensor& tensor, int rank) {
  complete(library().Send(tensor.raw(), count_of(tensor), type_of(tensor),
                          position_in(options_.ranks, rank), nccl_, stream_),
           "sending");
}

void Group::receive(const Tensor& tensor, int rank) {
  complete(library().Recv(tensor.raw(), count_of(tensor), type_of(tensor),
                          position_in(options_.ranks, rank), nccl_, stream_),
           "receiving");
}

void Group::follow_device() {
  device_place_.record(cuda::stream_of(device_));
  device_place_.hold(stream_);
}

void Group::wait(const Event& event) {
  communicator_.wait_until([&] {
    if (event.reached()) return Progress::done;
    poll_peers();
    return Progress::none;
  });
}

void Group::complete(ncclResult_t result, const char* what) {
  if (result == ncclInProgress) {
    communicator_.wait_until([&] {
      const ncclResult_t asked = library().CommGetAsyncError(nccl_, &result);
      if (asked != ncclSuccess) result = asked;
      if (result != ncclInProgress) return Progress::done;
      if (++polls_ % kPollsBetweenLooks == 0) communicator_.throw_if_peer_died();
      return Progress::none;
    });
  }
  if (result != ncclSuccess) fail(result, what);
}

void Group::poll_peers() {
  if (++polls_ % kPollsBetweenLooks != 0) return;
  communicator_.throw_if_peer_died();
  check_health();
}

void Group::check_health() {
  if (nccl_ == nullptr) return;
  ncclResult_t result = ncclSuccess;
  const ncclResult_t asked = library().CommGetAsyncError(nccl_, &result);
  if (asked != ncclSuccess) result = asked;
  if (result != ncclSuccess && result != ncclInProgress) fail(result, "an exchange");
}

void Group::fail(ncclResult_t result, const char* what) {
  communicator_.throw_if_peer_died();  // which says more
  std::string detail;
  if (const char* const last = library().GetLastError(nccl_); last != nullptr && *last != '\0') {
    detail = fmt::format(" ({})", last);
    std::replace(detail.begin(), detail.end(), '\n', ' ');
  }
  const std::string text = fmt::format("NCCL: {} failed on rank {}, of ranks {} for {}: {}{}", what,
                                       communicator_.rank(), fmt::join(options_.ranks, ", "),
                                       options_.purpose, library().GetErrorString(result), detail);
  if (result == ncclRemoteError) throw PeerFailure(text, communicator_.dead_ranks());
  throw std::runtime_error(text + "\nhint: NCCL_DEBUG=WARN in the environment makes NCCL say more");
}

std::string Group::stuck_text() const {
  const std::vector<int> dead = communicator_.dead_ranks();
  return fmt::format(
      "NCCL: what was under way on rank {}, of ranks {} for {}, had not ended {} s after it was "
      "given up{}: the GPU or the network to the others hangs\nhint: nvidia-smi and dmesg show the "
      "state of the GPU; `chaski train CONFIG --resume auto` goes on from the last checkpoint",
      communicator_.rank(), fmt::join(options_.ranks, ", "), options_.purpose,
      std::chrono::duration<double>(options_.abort_limit).count(),
      dead.empty() ? "" : fmt::format(" (rank {} died)", fmt::join(dead, ", ")));
}

void Group::abort() noexcept {
  if (nccl_ == nullptr) return;
  const Deadline deadline = std::chrono::steady_clock::now() + options_.abort_limit;
  // What was queued waits for nobody any more then, but it may still write.
  if (aborts_by(deadline, std::exchange(nccl_, nullptr)) && ends_by(deadline, stream_)) return;
  options_.on_stuck ? options_.on_stuck(stuck_text()) : end_process(stuck_text());
}

void Group::leave() noexcept {
  if (nccl_ == nullptr) return;
  ncclResult_t result = library().CommFinalize(nccl_);
  const Deadline deadline = std::chrono::steady_clock::now() + kLeaveLimit;
  while (result == ncclInProgress && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    const ncclResult_t asked = library().CommGetAsyncError(nccl_, &result);
    if (asked != ncclSuccess) result = asked;
  }
  if (result == ncclSuccess) {
    library().CommDestroy(std::exchange(nccl_, nullptr));
  } else {
    abort();
  }
}

std::string version_text(int version) {
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

}  // namespace nccl

bool is_built_with_nccl() {
  return true;
}

std::string nccl_version() {
  int version = 0;
  nccl::library().GetVersion(&version);
  return "NCCL " + nccl::version_text(version);
}

}  // namespace chaski
