#include "parallel/nccl_group.h"

#include <algorithm>
#include <fmt/format.h>
#include <stdexcept>
#include <thread>
#include <utility>

#include "kernels/cuda_context.h"
#include "parallel/nccl.h"
#include "parallel/nccl_library.h"

namespace chaski {
namespace nccl {
namespace {

// How long a process that leaves in order waits for its own part to end.
constexpr std::chrono::milliseconds kLeaveLimit{1000};
// Looking for dead processes costs more than looking at an event.
constexpr int kPollsBetweenLooks = 32;

// By which a group meets. Those of meetings that were given up are told by their number.
struct Invitation {
  std::int64_t meeting = 0;
  ncclUniqueId id{};
};

ncclDataType_t type_of(const Tensor& tensor) {
  if (tensor.dtype() == DType::f32) return ncclFloat32;
  if (tensor.dtype() == DType::bf16) return ncclBfloat16;
  throw std::logic_error(fmt::format("NCCL is not asked for {} here", name_of(tensor.dtype())));
}

std::size_t count_of(const Tensor& tensor) {
  return static_cast<std::size_t>(tensor.num_elements());
}

int position_in(const std::vector<int>& ranks, int rank) {
  const auto found = std::find(ranks.begin(), ranks.end(), rank);
  if (found == ranks.end() || !std::is_sorted(ranks.begin(), ranks.end()) || ranks.size() < 2) {
    throw std::invalid_argument(
        fmt::format("a group of rank {} needs ascending ranks, its own among them", rank));
  }
  return static_cast<int>(found - ranks.begin());
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

void Group::connect(const std::function<void(const Tensor&)>& trial) {
  if (nccl_ != nullptr) return;
  try {
    const ncclUniqueId id = agree_on_id();
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    if (options_.max_blocks > 0) config.maxCTAs = options_.max_blocks;
    cuda::check(cudaSetDevice(cuda::context_of(device_).ordinal()), "choosing the device");
    complete(library().CommInitRankConfig(&nccl_, size(), id, position_, &config), "joining");
    Workspace::Frame frame(device_);
    follow_device();  // which may still use the frame's memory for what was there before
    trial(frame.f32({1}));
    Event done;
    done.record(stream_);
    wait(done);
  } catch (...) {
    give_up();
    throw;
  }
}

ncclUniqueId Group::agree_on_id() {
  Invitation invitation{.meeting = meeting_};
  if (position_ == 0) {
    const ncclResult_t result = library().GetUniqueId(&invitation.id);
    if (result != ncclSuccess) fail(result, "starting");
    std::vector<Request> requests;
    for (const int rank : options_.ranks) {
      if (rank == communicator_.rank()) continue;
      requests.push_back(communicator_.isend(&invitation, sizeof invitation, rank, options_.tag));
    }
    communicator_.wait_all(requests);
    return invitation.id;
  }
  do {
    Request request =
        communicator_.irecv(&invitation, sizeof invitation, options_.ranks[0], options_.tag);
    communicator_.wait(request);
  } while (invitation.meeting < meeting_);
  return invitation.id;
}

int Group::position_of(int rank) const {
  return position_in(options_.ranks, rank);
}

void Group::all_reduce_sum(const Tensor& tensor) {
  complete(library().AllReduce(tensor.raw(), tensor.raw(), count_of(tensor), type_of(tensor),
                               ncclSum, nccl_, stream_),
           "summing");
}

void Group::send(const Tensor& tensor, int rank) {
  complete(library().Send(tensor.raw(), count_of(tensor), type_of(tensor), position_of(rank), nccl_,
                          stream_),
           "sending");
}

void Group::receive(const Tensor& tensor, int rank) {
  complete(library().Recv(tensor.raw(), count_of(tensor), type_of(tensor), position_of(rank), nccl_,
                          stream_),
           "receiving");
}

void Group::follow_device() {
  device_place_.record(cuda::stream_of(device_));
  device_place_.hold(stream_);
}

void Group::wait(const Event& event, const std::function<bool()>& condition) {
  communicator_.wait_until([&] {
    const bool reached = event.reached();
    if ((!condition || condition()) && reached) return Progress::done;
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

void Group::abort() noexcept {
  ++meeting_;
  give_up();
}

void Group::give_up() noexcept {
  if (nccl_ == nullptr) return;
  library().CommAbort(std::exchange(nccl_, nullptr));
  // What was queued waits for nobody any more, but it may still write.
  cudaStreamSynchronize(stream_);
}

void Group::leave() noexcept {
  if (nccl_ == nullptr) return;
  ncclResult_t result = library().CommFinalize(nccl_);
  const auto deadline = std::chrono::steady_clock::now() + kLeaveLimit;
  while (result == ncclInProgress && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    const ncclResult_t asked = library().CommGetAsyncError(nccl_, &result);
    if (asked != ncclSuccess) result = asked;
  }
  ncclComm_t const left = std::exchange(nccl_, nullptr);
  result == ncclSuccess ? library().CommDestroy(left) : library().CommAbort(left);
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
