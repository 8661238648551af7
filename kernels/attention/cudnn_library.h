#pragma once

#include <cudnn_graph.h>
#include <string>

namespace chaski::cuda {

// cuDNN's C functions, without their prefix, loaded when attention first asks for them: a program
// built with cuDNN starts where there is none, and a run on a CPU does not pay for it.
struct CudnnFunctions {
  decltype(&cudnnBackendCreateDescriptor) BackendCreateDescriptor;
  decltype(&cudnnBackendDestroyDescriptor) BackendDestroyDescriptor;
  decltype(&cudnnBackendExecute) BackendExecute;
  decltype(&cudnnBackendFinalize) BackendFinalize;
  decltype(&cudnnBackendGetAttribute) BackendGetAttribute;
  decltype(&cudnnBackendSetAttribute) BackendSetAttribute;
  decltype(&cudnnCreate) Create;
  decltype(&cudnnDestroy) Destroy;
  decltype(&cudnnGetErrorString) GetErrorString;
  decltype(&cudnnGetLastErrorString) GetLastErrorString;
  decltype(&cudnnGetVersion) GetVersion;
  decltype(&cudnnSetStream) SetStream;
};

// Throws std::runtime_error, in one line, where cuDNN cannot be loaded.
const CudnnFunctions& cudnn();

// As cudnnGetVersion counts: 91900 is 9.19.0.
std::string cudnn_version_text(std::size_t version);

// Why the last call of this thread did not do what it was asked to, in cuDNN's words and one line;
// empty where it said nothing since it was asked.
std::string cudnn_reason();

// Throws std::runtime_error with that reason.
void check_cudnn(cudnnStatus_t status, const char* what);

}  // namespace chaski::cuda
