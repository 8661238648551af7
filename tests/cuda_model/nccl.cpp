// A false NCCL between processes of this machine, as asynchronous as the real one: nothing is done
// before all sides have come, data is read as late as it may be, and a call is under way until it
// is asked for. What the real one would answer with a hang or with garbage ends the program with a
// message: operations that do not match, use after an abort. Processes connect when they first
// exchange something, for sums anew with each order of magnitude.
//   CHASKI_CUDA_MODEL_NCCL   folder for what the processes tell each other (default /dev/shm)

#include <bit>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_runtime_api.h>
#include <filesystem>
#include <functional>
#include <memory>
#include <nccl.h>
#include <random>
#include <set>
#include <string>
#include <unistd.h>
#include <vector>

#include "tests/cuda_model/grid.h"
#include "tests/cuda_model/nccl_operation.h"
#include "tests/cuda_model/runtime.h"
#include "tests/cuda_model/stream_state.h"

namespace chaski::cuda_model {
namespace {

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
  if (!std::filesystem::create_directory(path.str())) return ncclSystemError;
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
  while (nccl_abort() == NcclAbort::kHangs) usleep(1000);
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
