// A libcuda.so.1 that takes every kernel and starts none. cuDNN compiles the kernels of a plan for
// the GPU that it is told of, and gives them to the driver: with this one it makes whole plans for
// GPUs that are not there.

#include <cstdlib>

namespace {

constexpr int kSuccess = 0;
constexpr int kNoDevice = 100;

// Nobody looks into a handle.
int give_handle(void** handle) {
  static int place;
  *handle = &place;
  return kSuccess;
}

}  // namespace

// The driver's own declarations are not needed: what is not read need not be named.
extern "C" {

int cuLibraryLoadData(void** library) {
  return give_handle(library);
}
int cuLibraryGetKernel(void** kernel) {
  return give_handle(kernel);
}
int cuLibraryUnload() {
  return kSuccess;
}
int cuKernelSetAttribute() {
  return kSuccess;
}
int cuKernelGetAttribute(int* value) {
  *value = 0;
  return kSuccess;
}
int cuDriverGetVersion(int* version) {
  *version = 13000;
  return kSuccess;
}
int cuGetErrorString(int, const char** text) {
  *text = "there is no GPU";
  return kSuccess;
}
int cuGetErrorName(int, const char** text) {
  *text = "CUDA_ERROR_NO_DEVICE";
  return kSuccess;
}

// What must be there for cuDNN to load the driver, and is not called for a plan.
#define CHASKI_WITHOUT_DEVICE(name) \
  int name() {                      \
    return kNoDevice;               \
  }
CHASKI_WITHOUT_DEVICE(cuCtxGetCurrent)
CHASKI_WITHOUT_DEVICE(cuCtxGetDevice)
CHASKI_WITHOUT_DEVICE(cuCtxGetLimit)
CHASKI_WITHOUT_DEVICE(cuCtxPopCurrent)
CHASKI_WITHOUT_DEVICE(cuCtxPushCurrent)
CHASKI_WITHOUT_DEVICE(cuDeviceGet)
CHASKI_WITHOUT_DEVICE(cuDeviceGetAttribute)
CHASKI_WITHOUT_DEVICE(cuDeviceGetCount)
CHASKI_WITHOUT_DEVICE(cuDevicePrimaryCtxRelease)
CHASKI_WITHOUT_DEVICE(cuDevicePrimaryCtxReset)
CHASKI_WITHOUT_DEVICE(cuDevicePrimaryCtxRetain)
CHASKI_WITHOUT_DEVICE(cuFuncGetAttribute)
CHASKI_WITHOUT_DEVICE(cuFuncSetAttribute)
CHASKI_WITHOUT_DEVICE(cuInit)
CHASKI_WITHOUT_DEVICE(cuKernelGetFunction)
CHASKI_WITHOUT_DEVICE(cuLaunchCooperativeKernel)
CHASKI_WITHOUT_DEVICE(cuLaunchKernel)
CHASKI_WITHOUT_DEVICE(cuLaunchKernelEx)
CHASKI_WITHOUT_DEVICE(cuLibraryLoadFromFile)
CHASKI_WITHOUT_DEVICE(cuLinkAddData)
CHASKI_WITHOUT_DEVICE(cuLinkAddData_v2)
CHASKI_WITHOUT_DEVICE(cuLinkAddFile_v2)
CHASKI_WITHOUT_DEVICE(cuLinkComplete)
CHASKI_WITHOUT_DEVICE(cuLinkCreate)
CHASKI_WITHOUT_DEVICE(cuLinkCreate_v2)
CHASKI_WITHOUT_DEVICE(cuLinkDestroy)
CHASKI_WITHOUT_DEVICE(cuMemcpyDtoH_v2)
CHASKI_WITHOUT_DEVICE(cuModuleGetFunction)
CHASKI_WITHOUT_DEVICE(cuModuleGetGlobal_v2)
CHASKI_WITHOUT_DEVICE(cuModuleLoadData)
CHASKI_WITHOUT_DEVICE(cuModuleLoadDataEx)
CHASKI_WITHOUT_DEVICE(cuModuleLoadFatBinary)
CHASKI_WITHOUT_DEVICE(cuModuleUnload)
CHASKI_WITHOUT_DEVICE(cuOccupancyMaxActiveBlocksPerMultiprocessor)
CHASKI_WITHOUT_DEVICE(cuOccupancyMaxPotentialClusterSize)
CHASKI_WITHOUT_DEVICE(cuStreamGetCtx)
CHASKI_WITHOUT_DEVICE(cuStreamSynchronize)
CHASKI_WITHOUT_DEVICE(cuTensorMapEncodeIm2col)
CHASKI_WITHOUT_DEVICE(cuTensorMapEncodeTiled)

}  // extern "C"
