// In place of parallel/nccl/library.cpp where the execution model runs: the functions of nccl.cpp.
#include "parallel/nccl/library.h"

namespace chaski::nccl {

const Library& library() {
  static constexpr Library functions{
      &ncclGetVersion,         &ncclGetErrorString,    &ncclGetLastError, &ncclGetUniqueId,
      &ncclCommInitRankConfig, &ncclCommGetAsyncError, &ncclCommFinalize, &ncclCommDestroy,
      &ncclCommAbort,          &ncclAllReduce,         &ncclSend,         &ncclRecv};
  return functions;
}

}  // namespace chaski::nccl
