#include "parallel/mpi/communicator.h"

#include <algorithm>
#include <cstring>
#include <fmt/format.h>
#include <sched.h>
#include <thread>

#include "kernels/device/device.h"

#if __has_include(<mpi-ext.h>) && defined(OPEN_MPI)
#include <mpi-ext.h>
#endif

namespace chaski {
namespace {

// MPI counts are int; a longer message goes in parts of this size.
constexpr std::int64_t kMaxPart = std::int64_t{1} << 30;

constexpr const char* kResumeHint =
    "\nhint: a process or the network has failed; `chaski train CONFIG --resume auto` goes on from "
    "the last checkpoint";

std::string error_text(int code) {
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  return std::string(text, static_cast<std::size_t>(length));
}

bool means_dead_peer([[maybe_unused]] int code) {
#ifdef OMPI_HAVE_MPI_EXT_FTMPI
  int error_class = MPI_SUCCESS;
  MPI_Error_class(code, &error_class);
  return error_class == MPIX_ERR_PROC_FAILED || error_class == MPIX_ERR_PROC_FAILED_PENDING ||
         error_class == MPIX_ERR_REVOKED;
#else
  return false;
#endif
}

// Waiting that is quick when the answer is near and leaves the core to others when it is not:
// processes may outnumber the cores.
class Backoff {
 public:
  void reset() { rounds_ = 0; }
  void pause() {
    ++rounds_;
    if (rounds_ <= kSpins) return;
    if (rounds_ <= kSpins + kYields) {
      sched_yield();
      return;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }

 private:
  static constexpr int kSpins = 50;
  static constexpr int kYields = 400;
  int rounds_ = 0;
};

const void* host_data(const Tensor& tensor) {
  if (tensor.empty() || tensor.device().backend() != Backend::cpu) {
    throw std::logic_error("a message needs a tensor in host memory");
  }
  return tensor.raw();
}

}  // namespace

Communicator::Communicator(MpiRuntime& runtime) : runtime_(&runtime) {
  check(MPI_Comm_dup(MPI_COMM_WORLD, &comm_), "duplicate the communicator", -1);
  adopt();
}

Communicator::Communicator(MpiRuntime& runtime, MPI_Comm comm) : runtime_(&runtime), comm_(comm) {
  adopt();
}

Communicator::Communicator(int rank, int size) : rank_(rank), size_(size) {}

void Communicator::count_sent(std::int64_t bytes, int to, int tag) {
  for (Sent& known : sent_) {
    if (known.to != to || known.tag != tag) continue;
    known.bytes += bytes;
    return;
  }
  sent_.push_back({to, tag, bytes});
}

void Communicator::adopt() {
  MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
  MPI_Comm_rank(comm_, &rank_);
  MPI_Comm_size(comm_, &size_);
  int* bound = nullptr;
  int found = 0;
  MPI_Comm_get_attr(comm_, MPI_TAG_UB, static_cast<void*>(&bound), &found);
  if (found) max_tag_ = *bound;
}

Communicator::~Communicator() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  // Freeing is collective, so it may not end when a peer is gone; such a communicator is left.
  if (!finalized && comm_ != MPI_COMM_NULL && !broken_ && !survives_failures()) {
    MPI_Comm_free(&comm_);
  }
}

void Communicator::check(int code, const char* what, int peer) {
  if (code == MPI_SUCCESS) return;
  broken_ = true;
  const std::string with = peer < 0 ? "all" : fmt::format("rank {}", peer);
  const std::string text = fmt::format("MPI: {} with {}: {}", what, with, error_text(code));
  if (means_dead_peer(code)) throw_failure(text);
  throw std::runtime_error(text + kResumeHint);
}

Request Communicator::isend(const void* data, std::int64_t bytes, int to, int tag) {
  Request request;
  if (is_dry()) {
    count_sent(bytes, to, tag);
    return request;
  }
  request.peer_ = to;
  const char* at = static_cast<const char*>(data);
  do {
    const std::int64_t part = std::min(bytes, kMaxPart);
    MPI_Request handle = MPI_REQUEST_NULL;
    check(MPI_Isend(at, static_cast<int>(part), MPI_BYTE, to, tag, comm_, &handle), "send", to);
    request.add(handle);
    at += part;
    bytes -= part;
  } while (bytes > 0);
  return request;
}

Request Communicator::irecv(void* data, std::int64_t bytes, int from, int tag) {
  Request request;
  if (is_dry()) return request;
  request.peer_ = from;
  char* at = static_cast<char*>(data);
  do {
    const std::int64_t part = std::min(bytes, kMaxPart);
    MPI_Request handle = MPI_REQUEST_NULL;
    check(MPI_Irecv(at, static_cast<int>(part), MPI_BYTE, from, tag, comm_, &handle), "receive",
          from);
    request.add(handle);
    at += part;
    bytes -= part;
  } while (bytes > 0);
  return request;
}

Request Communicator::isend(const Tensor& tensor, int to, int tag) {
  return isend(is_dry() ? nullptr : host_data(tensor), tensor.num_bytes(), to, tag);
}

Request Communicator::irecv(const Tensor& tensor, int from, int tag) {
  void* const data = is_dry() ? nullptr : const_cast<void*>(host_data(tensor));
  return irecv(data, tensor.num_bytes(), from, tag);
}

bool Communicator::test_handle(MPI_Request& handle, int peer) {
  if (handle == MPI_REQUEST_NULL) return true;
  int done = 0;
  check(MPI_Test(&handle, &done, MPI_STATUS_IGNORE), "exchange", peer);
  return done != 0;
}

bool Communicator::test(Request& request) {
  bool done = test_handle(request.handle_, request.peer_);
  for (MPI_Request& part : request.more_) done = test_handle(part, request.peer_) && done;
  if (done) request.more_.clear();
  return done;
}

void Communicator::throw_if_revoked() {
#ifdef OMPI_HAVE_MPI_EXT_FTMPI
  int revoked = 0;
  if (survives_failures() && MPIX_Comm_is_revoked(comm_, &revoked) == MPI_SUCCESS && revoked) {
    throw_failure("MPI: a peer gave up this communicator");
  }
#endif
}

void Communicator::wait(Request& request) {
  wait_until([&] { return test(request) ? Progress::done : Progress::none; });
}

void Communicator::wait_all(std::span<Request> requests) {
  wait_until([&] {
    bool done = true;
    for (Request& request : requests) done = test(request) && done;
    return done ? Progress::done : Progress::none;
  });
}

void Communicator::progress() {
  if (is_dry()) return;
  int found = 0;
  // Nobody sends to himself through MPI; looking for it makes MPI move everything else.
  check(MPI_Iprobe(rank_, 0, comm_, &found, MPI_STATUS_IGNORE), "progress", rank_);
}

void Communicator::throw_if_peer_died() {
  if (!survives_failures()) return;
  progress();
  if (!dead_ranks().empty()) throw_failure("MPI: the job has lost a process");
}

void Communicator::throw_failure(const std::string& text) {
  broken_ = true;
  const std::vector<int> dead = dead_ranks();
  const std::string who = dead.empty() ? "" : fmt::format(": rank {} died", fmt::join(dead, ", "));
  throw PeerFailure(text + who + kResumeHint, dead);
}

Request Communicator::iall_reduce_sum(float* data, std::int64_t count) {
  return iall_reduce(data, count, MPI_FLOAT, MPI_SUM);
}

Request Communicator::iall_reduce_sum(double* data, std::int64_t count) {
  return iall_reduce(data, count, MPI_DOUBLE, MPI_SUM);
}

Request Communicator::iall_reduce(void* data, std::int64_t count, MPI_Datatype type, MPI_Op op) {
  Request request;
  if (is_dry()) return request;
  int size = 0;
  MPI_Type_size(type, &size);
  char* at = static_cast<char*>(data);
  while (count > 0 && size_ > 1) {
    const std::int64_t part = std::min(count, kMaxPart);
    MPI_Request handle = MPI_REQUEST_NULL;
    check(MPI_Iallreduce(MPI_IN_PLACE, at, static_cast<int>(part), type, op, comm_, &handle),
          "all-reduce", -1);
    request.add(handle);
    at += part * size;
    count -= part;
  }
  return request;
}

void Communicator::all_reduce_sum(std::span<float> data) {
  Request request = iall_reduce_sum(data.data(), std::ssize(data));
  wait(request);
}

void Communicator::all_reduce_sum(std::span<double> data) {
  Request request = iall_reduce_sum(data.data(), std::ssize(data));
  wait(request);
}

void Communicator::all_reduce_sum(std::span<std::int64_t> data) {
  Request request = iall_reduce(data.data(), std::ssize(data), MPI_INT64_T, MPI_SUM);
  wait(request);
}

double Communicator::all_reduce_max(double value) {
  Request request = iall_reduce(&value, 1, MPI_DOUBLE, MPI_MAX);
  wait(request);
  return value;
}

void Communicator::all_reduce_max(std::span<std::int64_t> data) {
  Request request = iall_reduce(data.data(), std::ssize(data), MPI_INT64_T, MPI_MAX);
  wait(request);
}

void Communicator::broadcast(void* data, std::int64_t bytes, int root) {
  char* at = static_cast<char*>(data);
  while (bytes > 0 && size_ > 1 && !is_dry()) {
    const std::int64_t part = std::min(bytes, kMaxPart);
    Request request;
    MPI_Request handle = MPI_REQUEST_NULL;
    check(MPI_Ibcast(at, static_cast<int>(part), MPI_BYTE, root, comm_, &handle), "broadcast", -1);
    request.add(handle);
    wait(request);
    at += part;
    bytes -= part;
  }
}

void Communicator::broadcast(std::string& text, int root) {
  std::int64_t length = std::ssize(text);
  broadcast(&length, sizeof length, root);
  text.resize(static_cast<std::size_t>(length));
  broadcast(text.data(), length, root);
}

std::vector<std::string> Communicator::gather(const std::string& text, int root) {
  std::vector<std::int64_t> lengths(static_cast<std::size_t>(size_), 0);
  lengths[static_cast<std::size_t>(rank_)] = std::ssize(text);
  all_reduce_sum(lengths);
  std::vector<std::string> texts;
  if (rank_ != root) {
    Request request = isend(text.data(), std::ssize(text), root, 0);
    wait(request);
    return texts;
  }
  texts.resize(static_cast<std::size_t>(size_));
  for (int from = 0; from < size_; ++from) {
    std::string& target = texts[static_cast<std::size_t>(from)];
    if (from == rank_) {
      target = text;
      continue;
    }
    target.resize(static_cast<std::size_t>(lengths[static_cast<std::size_t>(from)]));
    Request request = irecv(target.data(), std::ssize(target), from, 0);
    wait(request);
  }
  return texts;
}

void Communicator::barrier() {
  if (is_dry()) return;
  Request request;
  MPI_Request handle = MPI_REQUEST_NULL;
  check(MPI_Ibarrier(comm_, &handle), "barrier", -1);
  request.add(handle);
  wait(request);
}

std::uint32_t Communicator::agree(std::uint32_t flags) {
#ifdef OMPI_HAVE_MPI_EXT_FTMPI
  if (survives_failures()) {
    // The uniform agreement takes the bitwise and; the or is the complement of the complements'
    // and.
    int complement = static_cast<int>(~flags & 0x3fffffffU);
    Request request;
    MPI_Request handle = MPI_REQUEST_NULL;
    check(MPIX_Comm_iagree(comm_, &complement, &handle), "agreement", -1);
    request.add(handle);
    // It ends whoever dies. Leaving early because of a revocation could contradict the others.
    wait_until([&] { return test(request) ? Progress::done : Progress::none; }, false);
    return ~static_cast<std::uint32_t>(complement) & 0x3fffffffU;
  }
#endif
  std::uint32_t value = flags & 0x3fffffffU;
  Request request = iall_reduce(&value, 1, MPI_UINT32_T, MPI_BOR);
  wait(request);
  return value;
}

void Communicator::revoke() noexcept {
  broken_ = true;
#ifdef OMPI_HAVE_MPI_EXT_FTMPI
  if (survives_failures()) MPIX_Comm_revoke(comm_);
#endif
}

std::vector<int> Communicator::dead_ranks() const {
  std::vector<int> ranks;
#ifdef OMPI_HAVE_MPI_EXT_FTMPI
  MPI_Group dead = MPI_GROUP_NULL;
  if (!survives_failures() || MPIX_Comm_get_failed(comm_, &dead) != MPI_SUCCESS) {
    return ranks;
  }
  int count = 0;
  MPI_Group_size(dead, &count);
  if (count > 0) {
    std::vector<int> in_dead(static_cast<std::size_t>(count));
    for (int i = 0; i < count; ++i) in_dead[static_cast<std::size_t>(i)] = i;
    ranks.resize(static_cast<std::size_t>(count));
    MPI_Group all = MPI_GROUP_NULL;
    MPI_Comm_group(comm_, &all);
    MPI_Group_translate_ranks(dead, count, in_dead.data(), all, ranks.data());
    MPI_Group_free(&all);
    std::sort(ranks.begin(), ranks.end());
  }
  MPI_Group_free(&dead);
#endif
  return ranks;
}

bool Communicator::drain(std::span<Request> requests, std::chrono::milliseconds limit) noexcept {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  Backoff backoff;
  const auto ended = [](MPI_Request& handle) {
    int done = 0;
    // A request that ends with an error has ended: its handle is null then.
    if (handle != MPI_REQUEST_NULL && MPI_Test(&handle, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) {
      handle = MPI_REQUEST_NULL;
    }
    return handle == MPI_REQUEST_NULL;
  };
  while (true) {
    bool done = true;
    for (Request& request : requests) {
      done = ended(request.handle_) && done;
      bool parts_done = true;
      for (MPI_Request& part : request.more_) parts_done = ended(part) && parts_done;
      if (parts_done) request.more_.clear();
      done = done && parts_done;
    }
    if (done) return true;
    if (std::chrono::steady_clock::now() > deadline) return false;
    backoff.pause();
  }
}

void Communicator::wait_until(const std::function<Progress()>& step) {
  wait_until(step, true);
}

void Communicator::wait_until(const std::function<Progress()>& step, bool heed_revocation) {
  Backoff backoff;
  for (int round = 1;; ++round) {
    const Progress progress = step();
    if (progress == Progress::done) return;
    if (heed_revocation) throw_if_revoked();
    if (wait_callback_ && round % 16 == 0) wait_callback_();
    if (progress == Progress::some) {
      backoff.reset();
    } else {
      backoff.pause();
    }
  }
}

}  // namespace chaski
