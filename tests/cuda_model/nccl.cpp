// A false NCCL between processes of this machine, as asynchronous as the real one: nothing is done
// before all sides have come, data is read as late as it may be, and a call is under way until it
// is asked for. What the real one would answer with a hang or with garbage ends the program with a
// message: operations that do not match, use after an abort. Processes connect when they first
// exchange something, for sums anew with each order of magnitude.
//   CHASKI_CUDA_MODEL_NCCL   folder for what the processes tell each other (default /dev/shm)

#include <algorithm>
#include <atomic>
#include <bit>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_runtime_api.h>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <nccl.h>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <unistd.h>
#include <vector>

#include "tests/cuda_model/control.h"
#include "tests/cuda_model/grid.h"
#include "tests/cuda_model/runtime.h"
#include "tests/cuda_model/stream_state.h"

namespace chaski::cuda_model {
namespace {

namespace fs = std::filesystem;

std::atomic<NcclAbort>& abort_mode() {
  static std::atomic<NcclAbort> mode = [] {
    const char* const given = std::getenv("CHASKI_CUDA_MODEL_NCCL_ABORT");
    const std::string name = given == nullptr ? "ends" : given;
    return name == "leaves"  ? NcclAbort::kLeaves
           : name == "hangs" ? NcclAbort::kHangs
                             : NcclAbort::kEnds;
  }();
  return mode;
}

enum class Kind { kSend, kReceive, kAllReduce };

/// What the processes of a group say to each other: files in a folder of theirs.
class Folder {
 public:
  explicit Folder(fs::path path) : path_(std::move(path)) {}

  void put(const std::string& name, const std::string& content) const {
    const fs::path temporary = path_ / (name + ".new");
    std::ofstream(temporary, std::ios::binary) << content;
    std::error_code error;
    fs::rename(temporary, path_ / name, error);  // the others may have given up
  }
  bool has(const std::string& name) const {
    std::error_code error;
    return fs::exists(path_ / name, error);
  }
  std::string get(const std::string& name) const {
    std::ifstream file(path_ / name, std::ios::binary);
    std::ostringstream content;
    content << file.rdbuf();
    return content.str();
  }
  std::string take(const std::string& name) const {
    std::string content = get(name);
    std::error_code error;
    fs::remove(path_ / name, error);
    return content;
  }
  void remove() const {
    std::error_code error;
    fs::remove_all(path_, error);
  }

 private:
  fs::path path_;
};

std::string joined(std::initializer_list<std::string> parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : "-") + part;
  return text;
}

/// What the operations of a communicator keep alive.
struct Group {
  Folder folder;
  int rank;
  int size;
  bool aborted = false;
  int outstanding = 0;                 // operations that are not complete
  std::vector<std::uint64_t> num_ops;  // with each process
};

std::size_t size_of(ncclDataType_t type) {
  if (type == ncclFloat32) return sizeof(float);
  if (type == ncclBfloat16) return 2;
  fail("NCCL: data of this type is not modelled");
}

float to_float(const unsigned char* element, ncclDataType_t type) {
  std::uint32_t bits = 0;
  if (type == ncclFloat32) {
    std::memcpy(&bits, element, 4);
  } else {
    std::uint16_t half = 0;
    std::memcpy(&half, element, 2);
    bits = static_cast<std::uint32_t>(half) << 16;
  }
  float value = 0.0F;
  std::memcpy(&value, &bits, 4);
  return value;
}

void from_float(float value, unsigned char* element, ncclDataType_t type) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, 4);
  if (type == ncclFloat32) {
    std::memcpy(element, &bits, 4);
    return;
  }
  // To nearest, ties to even; NaN stays one.
  const bool nan = value != value;
  const std::uint32_t rounded = nan ? bits | 0x400000U : bits + 0x7fffU + ((bits >> 16) & 1U);
  const auto half = static_cast<std::uint16_t>(rounded >> 16);
  std::memcpy(element, &half, 2);
}

/// An operation in a stream: meets the other sides, then gives data away, then takes data.
class Operation {
 public:
  Operation(std::shared_ptr<Group> group, Kind kind, void* data, std::size_t count,
            ncclDataType_t type, std::vector<int> peers)
      : group_(std::move(group)),
        kind_(kind),
        data_(static_cast<unsigned char*>(data)),
        count_(count),
        type_(type),
        peers_(std::move(peers)) {
    for (const int peer : peers_) {
      numbers_.push_back(group_->num_ops[static_cast<std::size_t>(peer)]++);
    }
    ++group_->outstanding;
  }

  /// True when it is complete.
  bool attempt() {
    if (group_->aborted && abort_mode() != NcclAbort::kEnds) return false;
    if (group_->aborted) {
      if (kind_ != Kind::kSend) std::memset(data_, 0xff, bytes());
    } else if (!go_on()) {
      return false;
    }
    --group_->outstanding;
    return true;
  }

 private:
  enum class Phase { kCome, kMeet, kExchange };

  bool go_on() {
    if (phase_ == Phase::kCome) {
      for (std::size_t i = 0; i < peers_.size(); ++i) put("call", i, description(kind_));
      phase_ = Phase::kMeet;
    }
    if (phase_ == Phase::kMeet) {
      if (!all([&](std::size_t i) { return group_->folder.has(name("call", i, false)); })) {
        return false;
      }
      for (std::size_t i = 0; i < peers_.size(); ++i) compare(i);
      for (std::size_t i = 0; i < peers_.size() && kind_ != Kind::kReceive; ++i) {
        put("data", i, std::string(reinterpret_cast<const char*>(data_), bytes()));
      }
      phase_ = Phase::kExchange;
    }
    if (kind_ == Kind::kSend) return !group_->folder.has(name("data", 0, true));
    if (!all([&](std::size_t i) { return group_->folder.has(name("data", i, false)); })) {
      return false;
    }
    kind_ == Kind::kReceive ? receive() : sum();
    return true;
  }

  void receive() {
    const std::string data = group_->folder.take(name("data", 0, false));
    std::memcpy(data_, data.data(), bytes());
  }

  /// In ascending order of ranks.
  void sum() {
    std::vector<std::string> data(static_cast<std::size_t>(group_->size));
    data[static_cast<std::size_t>(group_->rank)] =
        std::string(reinterpret_cast<const char*>(data_), bytes());
    for (std::size_t i = 0; i < peers_.size(); ++i) {
      data[static_cast<std::size_t>(peers_[i])] = group_->folder.take(name("data", i, false));
    }
    const std::size_t size = size_of(type_);
    for (std::size_t i = 0; i < count_; ++i) {
      float total = 0.0F;
      for (std::size_t rank = 0; rank < data.size(); ++rank) {
        const auto* element = reinterpret_cast<const unsigned char*>(data[rank].data()) + i * size;
        total = rank == 0 ? to_float(element, type_) : total + to_float(element, type_);
      }
      from_float(total, data_ + i * size, type_);
    }
  }

  void compare(std::size_t i) {
    const std::string theirs = group_->folder.take(name("call", i, false));
    const Kind wanted = kind_ == Kind::kSend      ? Kind::kReceive
                        : kind_ == Kind::kReceive ? Kind::kSend
                                                  : Kind::kAllReduce;
    if (theirs == description(wanted)) return;
    fail("NCCL: " + description(kind_) + " of rank " + std::to_string(group_->rank) + " meets " +
         theirs + " of rank " + std::to_string(peers_[i]));
  }

  std::string description(Kind kind) const {
    const char* const verb = kind == Kind::kSend      ? "a send"
                             : kind == Kind::kReceive ? "a receive"
                                                      : "a sum";
    return std::string(verb) + " of " + std::to_string(count_) +
           (type_ == ncclFloat32 ? " f32" : " bf16");
  }

  std::string name(const std::string& what, std::size_t i, bool mine) const {
    const std::string here = std::to_string(group_->rank);
    const std::string there = std::to_string(peers_[i]);
    return joined({what, mine ? here : there, mine ? there : here, std::to_string(numbers_[i])});
  }
  void put(const std::string& what, std::size_t i, const std::string& content) const {
    group_->folder.put(name(what, i, true), content);
  }
  bool all(const std::function<bool(std::size_t)>& holds) const {
    for (std::size_t i = 0; i < peers_.size(); ++i) {
      if (!holds(i)) return false;
    }
    return true;
  }
  std::size_t bytes() const { return count_ * size_of(type_); }

  std::shared_ptr<Group> group_;
  Kind kind_;
  unsigned char* data_;
  std::size_t count_;
  ncclDataType_t type_;
  std::vector<int> peers_;
  std::vector<std::uint64_t> numbers_;
  Phase phase_ = Phase::kCome;
};

std::string device_name() {
  char host[256] = {};
  gethostname(host, sizeof(host) - 1);
  char address[32] = {};
  cudaDeviceGetPCIBusId(address, sizeof address, current_device());
  return std::string(host) + " " + address;
}

thread_local std::string last_error;

ncclResult_t refuse(ncclResult_t result, const std::string& why) {
  last_error = why;
  return result;
}

}  // namespace
}  // namespace chaski::cuda_model

using namespace chaski::cuda_model;

void chaski::cuda_model::set_nccl_abort(NcclAbort abort) {
  abort_mode() = abort;
}

/// A communicator: what one process of a group holds.
struct ncclComm {
  std::shared_ptr<Group> group;
  /// What the last call has begun; null when it has come to its end. True when it has.
  std::function<ncclResult_t()> under_way;
  bool asked = false;           // whether anybody has asked after it
  std::set<std::string> links;  // made by the first exchange that needs them
  ncclResult_t failure = ncclSuccess;
  bool finalized = false;

  void begin(std::function<ncclResult_t()> work) {
    under_way = std::move(work);
    asked = false;
  }
};

namespace {

std::set<ncclComm_t>& communicators() {
  static auto* const all = new std::set<ncclComm_t>;
  return *all;
}

/// The program ends if there is none.
ncclComm& resolve(ncclComm_t comm) {
  if (communicators().count(comm) == 0) {
    fail("NCCL: a communicator is used that does not exist, or was aborted or destroyed");
  }
  return *comm;
}

ncclResult_t join(ncclComm& comm) {
  const Group& group = *comm.group;
  std::set<std::string> devices;
  for (int rank = 0; rank < group.size; ++rank) {
    const std::string name = "joined-" + std::to_string(rank);
    if (!group.folder.has(name)) return ncclInProgress;
    devices.insert(group.folder.get(name));
  }
  if (static_cast<int>(devices.size()) == group.size) return ncclSuccess;
  return refuse(ncclInvalidUsage, "Duplicate GPU detected");
}

/// The first exchange over a link is under way until all sides have called it.
bool linked(ncclComm& comm, const std::string& link, const std::vector<int>& sides) {
  if (comm.links.count(link) != 0) return true;
  const Folder& folder = comm.group->folder;
  const std::string own = joined({link, std::to_string(comm.group->rank)});
  if (!folder.has(own)) folder.put(own, "");
  for (const int side : sides) {
    if (!folder.has(joined({link, std::to_string(side)}))) return false;
  }
  comm.links.insert(link);
  return true;
}

ncclResult_t queue(ncclComm_t handle, Kind kind, void* data, std::size_t count, ncclDataType_t type,
                   int peer, cudaStream_t stream) {
  const std::lock_guard lock(api_mutex());
  ncclComm& comm = resolve(handle);
  if (comm.failure != ncclSuccess) return comm.failure;
  if (comm.under_way || comm.finalized) {
    return refuse(ncclInvalidUsage, "a call is made while another one is under way");
  }
  if (!inside_device_region(data, count * size_of(type))) {
    return refuse(ncclInvalidArgument, "the buffer is not in the memory of a device");
  }
  Group& group = *comm.group;
  std::vector<int> peers = {peer};
  // NCCL sums in other ways, over other connections, as sizes grow.
  std::string link = joined({"link-all", std::to_string(std::bit_width(count * size_of(type)))});
  if (kind == Kind::kAllReduce) {
    peers.clear();
    for (int rank = 0; rank < group.size; ++rank) {
      if (rank != group.rank) peers.push_back(rank);
    }
  } else {
    if (peer < 0 || peer >= group.size || peer == group.rank) return ncclInvalidArgument;
    const bool sends = kind == Kind::kSend;
    link = joined({"link", std::to_string(sends ? group.rank : peer), "to",
                   std::to_string(sends ? peer : group.rank)});
  }
  comm.begin([&comm, kind, data, count, type, peers, link, stream] {
    if (!linked(comm, link, peers)) return ncclInProgress;
    auto operation = std::make_shared<Operation>(comm.group, kind, data, count, type, peers);
    submit_external(stream, [operation] { return operation->attempt(); });
    return ncclSuccess;
  });
  return ncclInProgress;
}

void leave(ncclComm_t handle) {
  const Group& group = *handle->group;
  group.folder.put("left-" + std::to_string(group.rank), "");
  bool all = true;
  for (int rank = 0; rank < group.size; ++rank) {
    all = all && group.folder.has("left-" + std::to_string(rank));
  }
  if (all) group.folder.remove();
  communicators().erase(handle);
  delete handle;
}

}  // namespace

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "NCCL operation in progress";
    default:
      return "unknown result code";
  }
}

const char* ncclGetLastError(ncclComm_t) {
  return last_error.c_str();
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  const char* const base = std::getenv("CHASKI_CUDA_MODEL_NCCL");
  std::random_device random;
  std::ostringstream path;
  path << (base == nullptr ? "/dev/shm" : base) << "/chaski-cuda-model-nccl-" << std::hex
       << random() << random();
  if (path.str().size() >= sizeof(id->internal)) return ncclInvalidArgument;
  if (!fs::create_directory(path.str())) return ncclSystemError;
  std::snprintf(id->internal, sizeof(id->internal), "%s", path.str().c_str());
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  const std::lock_guard lock(api_mutex());
  if (config == nullptr || config->blocking != 0) fail("NCCL: only calls that do not block");
  if (rank < 0 || rank >= size) return ncclInvalidArgument;
  auto* const made = new ncclComm;
  made->group =
      std::make_shared<Group>(Group{Folder(id.internal), rank, size, false, 0,
                                    std::vector<std::uint64_t>(static_cast<std::size_t>(size), 0)});
  made->group->folder.put("joined-" + std::to_string(rank), device_name());
  made->begin([made] { return join(*made); });
  communicators().insert(made);
  *comm = made;
  work_without_host();
  return ncclInProgress;
}

/// The first question about what is under way is answered "not yet".
ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t* state) {
  const std::lock_guard lock(api_mutex());
  ncclComm& comm = resolve(handle);
  count_call();
  let_streams_get_ahead();
  *state = comm.failure;
  if (!comm.under_way) return ncclSuccess;
  *state = ncclInProgress;
  if (!std::exchange(comm.asked, true)) return ncclSuccess;
  *state = comm.under_way();
  if (*state == ncclInProgress) {
    serve_other_processes();
    return ncclSuccess;
  }
  comm.under_way = nullptr;
  if (*state != ncclSuccess) comm.failure = *state;
  return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  if (op != ncclSum || from != to) fail("NCCL: only sums in place are modelled");
  return queue(comm, Kind::kAllReduce, to, count, type, -1, stream);
}

ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return queue(comm, Kind::kSend, const_cast<void*>(data), count, type, peer, stream);
}

ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return queue(comm, Kind::kReceive, data, count, type, peer, stream);
}

ncclResult_t ncclCommFinalize(ncclComm_t handle) {
  const std::lock_guard lock(api_mutex());
  ncclComm& comm = resolve(handle);
  if (comm.failure != ncclSuccess) return comm.failure;
  if (comm.under_way || comm.finalized) {
    return refuse(ncclInvalidUsage, "a call is made while another one is under way");
  }
  comm.begin([&comm] {
    if (comm.group->outstanding > 0) return ncclInProgress;
    comm.finalized = true;
    return ncclSuccess;
  });
  return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t handle) {
  const std::lock_guard lock(api_mutex());
  const ncclComm& comm = resolve(handle);
  if (comm.group->outstanding > 0) {
    fail("NCCL: a communicator is destroyed while " + std::to_string(comm.group->outstanding) +
         " of its operations wait for other processes");
  }
  if (!comm.finalized) fail("NCCL: a communicator is destroyed that was not finalized");
  leave(handle);
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t handle) {
  while (abort_mode() == NcclAbort::kHangs) usleep(1000);
  const std::lock_guard lock(api_mutex());
  ncclComm& comm = resolve(handle);
  if (comm.under_way && comm.group->outstanding > 0 && comm.failure == ncclSuccess) {
    std::fprintf(stderr, "chaski: CUDA model: NCCL: aborted with %d operations to do\n",
                 comm.group->outstanding);
  }
  comm.group->aborted = true;
  leave(handle);
  return ncclSuccess;
}

}  // extern "C"
