#pragma once

namespace chaski::cuda {

// Whether the kernels of this build run on the GPU that was chosen last: they are compiled for
// CMAKE_CUDA_ARCHITECTURES, and what is compiled for one runs on newer ones only.
bool has_code_for_current_device();

}  // namespace chaski::cuda
