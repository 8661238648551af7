// In place of parallel/nccl_library.cpp where the execution model runs: the functions of nccl.cpp.
#include "parallel/nccl_library.h"

namespace chaski::nccl {

const Library& library() {
  static constexpr Library functions{
      &ncclGetVersion,         &ncclGetErrorString,    &ncclGetLastError, &ncclGetUniqueId,
      &ncclCommInitRankConfig, &ncclCommGetAsyncError, &ncclCommFinalize, &ncclCommDestroy,
      &ncclCommAbort,          &ncclAllReduce,         &ncclSend,         &ncclRecv};
  return functions;
}

}  // namespace chaski::nccl
