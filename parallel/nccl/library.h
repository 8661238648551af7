#pragma once

#include <nccl.h>
#include <string>

namespace chaski::nccl {

// NCCL's functions. Loaded when processes first exchange something between GPUs: linked with, its
// 200 MB would cost every other run memory and time.
struct Library {
  decltype(&ncclGetVersion) GetVersion;
  decltype(&ncclGetErrorString) GetErrorString;
  decltype(&ncclGetLastError) GetLastError;
  decltype(&ncclGetUniqueId) GetUniqueId;
  decltype(&ncclCommInitRankConfig) CommInitRankConfig;
  decltype(&ncclCommGetAsyncError) CommGetAsyncError;
  decltype(&ncclCommFinalize) CommFinalize;
  decltype(&ncclCommDestroy) CommDestroy;
  decltype(&ncclCommAbort) CommAbort;
  decltype(&ncclAllReduce) AllReduce;
  decltype(&ncclSend) Send;
  decltype(&ncclRecv) Recv;
};

// Throws std::runtime_error where it cannot be loaded or is too old.
const Library& library();

std::string version_text(int version);  // "2.28.9"

}  // namespace chaski::nccl
