#include "parallel/mpi/communicator.h"

#include <algorithm>
#include <fmt/format.h>
#include <iterator>
#include <numeric>

#include "kernels/device/device.h"
#include "parallel/mpi/backoff.h"

#if __has_include(<mpi-ext.h>) && defined(OPEN_MPI)
#include <mpi-ext.h>
#endif

namespace chaski {
namespace {

// MPI counts are int; a longer message goes in parts of this size.
constexpr std::int64_t kMaxPart = std::int64_t{1} << 30;

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

const void* host_data(const Tensor& tensor) {
  if (tensor.empty() || tensor.device().backend() != Backend::cpu) {
    throw std::logic_error("a message needs a tensor in host memory");
  }
  return tensor.raw();
}

// Of the processes of a group, in its order.
std::vector<int> ranks_in(MPI_Comm comm, MPI_Group group) {
  int count = 0;
  MPI_Group_size(group, &count);
  std::vector<int> ranks(static_cast<std::size_t>(count));
  if (count == 0) return ranks;
  std::vector<int> in_group(ranks.size());
  std::iota(in_group.begin(), in_group.end(), 0);
  MPI_Group all = MPI_GROUP_NULL;
  MPI_Comm_group(comm, &all);
  MPI_Group_translate_ranks(group, count, in_group.data(), all, ranks.data());
  MPI_Group_free(&all);
  return ranks;
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
}

Communicator::~Communicator() {
  if (is_dry()) return;
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized) return;
  forget_ended_collectives();
  // Of what is left MPI may still use the memory.
  static auto* const kept = new std::vector<std::unique_ptr<Collective>>;
  std::move(collectives_.begin(), collectives_.end(), std::back_inserter(*kept));
  // Freeing is collective, so it may not end when a peer is gone; such a communicator is left.
  if (!broken_ && !survives_failures()) MPI_Comm_free(&comm_);
}

void Communicator::check(int code, const char* what, int peer) {
  if (code == MPI_SUCCESS) return;
  broken_ = true;
  const std::string with = peer < 0 ? "all" : fmt::format("rank {}", peer);
  const std::string text = fmt::format("MPI: {} with {}: {}", what, with, error_text(code));
  // A collective that meets a failure after its first round ends with an error of no class.
  if (means_dead_peer(code) || is_revoked() || !dead_ranks().empty()) throw_failure(text);
  throw CommunicationError(text);
}

Request Communicator::isend(const void* data, std::int64_t bytes, int to, int tag) {
  Request request(false, to);
  if (is_dry()) {
    count_sent(bytes, to, tag);
    return request;
  }
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
  Request request(true, from);
  if (is_dry()) return request;
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

bool Communicator::is_revoked() const {
  int revoked = 0;
#ifdef OMPI_HAVE_MPI_EXT_FTMPI
  if (survives_failures() && MPIX_Comm_is_revoked(comm_, &revoked) != MPI_SUCCESS) return false;
#endif
  return revoked != 0;
}

void Communicator::throw_if_revoked() {
  if (is_revoked()) throw_failure("MPI: a peer gave up this communicator");
}

void Communicator::wait(Request& request) {
  wait_until([&] { return test(request) ? Progress::done : Progress::none; });
}

void Communicator::progress() {
  if (is_dry()) return;
  int found = 0;
  // Nobody sends to himself through MPI; looking for it makes MPI move everything else.
  check(MPI_Iprobe(rank_, 0, comm_, &found, MPI_STATUS_IGNORE), "progress", rank_);
}

void Communicator::throw_if_peer_died() {
  if (!survives_failures()) return;
  throw_if_revoked();
  progress();
  if (!dead_ranks().empty()) throw_failure("MPI: the job has lost a process");
}

void Communicator::throw_failure(const std::string& text) {
  broken_ = true;
  const std::vector<int> dead = dead_ranks();
  const std::string who = dead.empty() ? "" : fmt::format(": rank {} died", fmt::join(dead, ", "));
  throw PeerFailure(text + who, dead);
}

void Communicator::forget_ended_collectives() {
  std::erase_if(collectives_, [](const std::unique_ptr<Collective>& collective) {
    if (collective->request == MPI_REQUEST_NULL) return true;
    int done = 0;
    return MPI_Test(&collective->request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS || done != 0;
  });
}

void Communicator::run_part(const char* what, std::span<std::byte> data, int count,
                            const StartCollective& start, bool heed_revocation) {
  forget_ended_collectives();
  collectives_.push_back(std::make_unique<Collective>());
  Collective& collective = *collectives_.back();
  collective.memory.assign(data.begin(), data.end());
  check(start(collective.memory.data(), count, &collective.request), what, -1);
  wait_until([&] { return test_handle(collective.request, -1) ? Progress::done : Progress::none; },
             heed_revocation);
  std::copy(collective.memory.begin(), collective.memory.end(), data.begin());
  collectives_.pop_back();
}

void Communicator::run_collective(const char* what, void* data, std::int64_t count,
                                  int element_bytes, const StartCollective& start) {
  if (is_dry()) return;
  auto* at = static_cast<std::byte*>(data);
  while (count > 0 && size_ > 1) {
    const std::int64_t part = std::min(count, kMaxPart / element_bytes);
    const std::span<std::byte> bytes(at, static_cast<std::size_t>(part * element_bytes));
    run_part(what, bytes, static_cast<int>(part), start);
    at += bytes.size();
    count -= part;
  }
}

void Communicator::all_reduce(void* data, std::int64_t count, MPI_Datatype type, MPI_Op op) {
  if (is_dry()) return;
  int bytes = 0;
  MPI_Type_size(type, &bytes);
  run_collective("all-reduce", data, count, bytes,
                 [&](void* memory, int part, MPI_Request* request) {
                   return MPI_Iallreduce(MPI_IN_PLACE, memory, part, type, op, comm_, request);
                 });
}

void Communicator::all_reduce_sum(std::span<double> data) {
  all_reduce(data.data(), std::ssize(data), MPI_DOUBLE, MPI_SUM);
}

void Communicator::all_reduce_sum(std::span<std::int64_t> data) {
  all_reduce(data.data(), std::ssize(data), MPI_INT64_T, MPI_SUM);
}

double Communicator::all_reduce_max(double value) {
  all_reduce(&value, 1, MPI_DOUBLE, MPI_MAX);
  return value;
}

void Communicator::all_reduce_max(std::span<std::int64_t> data) {
  all_reduce(data.data(), std::ssize(data), MPI_INT64_T, MPI_MAX);
}

void Communicator::broadcast(void* data, std::int64_t bytes, int root) {
  run_collective("broadcast", data, bytes, 1, [&](void* memory, int part, MPI_Request* request) {
    return MPI_Ibcast(memory, part, MPI_BYTE, root, comm_, request);
  });
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
    Request request = isend(text.data(), std::ssize(text), root, kGatherTag);
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
    Request request = irecv(target.data(), std::ssize(target), from, kGatherTag);
    wait(request);
  }
  return texts;
}

void Communicator::barrier() {
  if (is_dry()) return;
  run_part("barrier", {}, 0,
           [&](void*, int, MPI_Request* request) { return MPI_Ibarrier(comm_, request); });
}

std::uint32_t Communicator::agree(std::uint32_t flags) {
  flags &= 0x3fffffffU;
#ifdef OMPI_HAVE_MPI_EXT_FTMPI
  if (survives_failures()) {
    // The uniform agreement takes the bitwise and; the or is the complement of the complements'
    // and.
    int complement = static_cast<int>(~flags & 0x3fffffffU);
    const auto start = [&](void* memory, int, MPI_Request* request) {
      return MPIX_Comm_iagree(comm_, static_cast<int*>(memory), request);
    };
    // It ends whoever dies. Leaving early because of a revocation could contradict the others.
    run_part("agreement", std::as_writable_bytes(std::span(&complement, 1)), 1, start, false);
    return ~static_cast<std::uint32_t>(complement) & 0x3fffffffU;
  }
#endif
  all_reduce(&flags, 1, MPI_UINT32_T, MPI_BOR);
  return flags;
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
  ranks = ranks_in(comm_, dead);
  std::sort(ranks.begin(), ranks.end());
  MPI_Group_free(&dead);
#endif
  return ranks;
}

std::unique_ptr<Communicator> Communicator::shrink() {
#ifdef OMPI_HAVE_MPI_EXT_FTMPI
  if (survives_failures()) {
    MPI_Comm survivors = MPI_COMM_NULL;
    check(MPIX_Comm_shrink(comm_, &survivors), "shrink the communicator", -1);
    return std::make_unique<Communicator>(*runtime_, survivors);
  }
#endif
  throw std::runtime_error("MPI: this run does not survive the loss of a process");
}

std::vector<int> Communicator::ranks_on_this_host() {
  MPI_Comm host = MPI_COMM_NULL;
  check(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &host),
        "find the processes of this host", -1);
  MPI_Group group_of_host = MPI_GROUP_NULL;
  MPI_Comm_group(host, &group_of_host);
  std::vector<int> ranks = ranks_in(comm_, group_of_host);
  MPI_Group_free(&group_of_host);
  MPI_Comm_free(&host);
  return ranks;
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
