#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/attention/cudnn_library.h"

namespace chaski::cuda {

// One of cuDNN's backend descriptors, destroyed with its owner. Attributes are set, then it is
// finalized, and then they can be read. Failures are std::runtime_error.
class CudnnDescriptor {
 public:
  using Name = cudnnBackendAttributeName_t;
  using Type = cudnnBackendAttributeType_t;

  explicit CudnnDescriptor(cudnnBackendDescriptorType_t type);
  ~CudnnDescriptor();
  CudnnDescriptor(CudnnDescriptor&& other) noexcept;
  CudnnDescriptor& operator=(CudnnDescriptor&& other) noexcept;
  CudnnDescriptor(const CudnnDescriptor&) = delete;
  CudnnDescriptor& operator=(const CudnnDescriptor&) = delete;

  void set(Name name, Type type, std::int64_t count, const void* values);
  template <typename T>
  void set(Name name, const T& value) {
    set(name, type_of(value), 1, &value);
  }
  void set(Name name, const std::array<std::int64_t, 4>& values);
  // Of other descriptors, which are finalized.
  void set(Name name, const CudnnDescriptor& part);
  void set(Name name, const std::vector<CudnnDescriptor>& parts);

  void finalize(const char* what);

  // How many there are; at most `count` of them are written.
  std::int64_t get(Name name, Type type, std::int64_t count, void* values) const;
  // Into descriptors that are not finalized.
  void get(Name name, CudnnDescriptor& part) const;
  std::int64_t get(Name name, std::vector<CudnnDescriptor>& parts) const;

  cudnnBackendDescriptor_t raw() const { return descriptor_; }

 private:
  static constexpr Type type_of(std::int64_t) { return CUDNN_TYPE_INT64; }
  static constexpr Type type_of(bool) { return CUDNN_TYPE_BOOLEAN; }
  static constexpr Type type_of(cudnnHandle_t) { return CUDNN_TYPE_HANDLE; }
  static constexpr Type type_of(cudnnDataType_t) { return CUDNN_TYPE_DATA_TYPE; }
  static constexpr Type type_of(cudnnPointwiseMode_t) { return CUDNN_TYPE_POINTWISE_MODE; }
  static constexpr Type type_of(cudnnReduceTensorOp_t) {
    return CUDNN_TYPE_REDUCTION_OPERATOR_TYPE;
  }
  static constexpr Type type_of(cudnnBackendHeurMode_t) { return CUDNN_TYPE_HEUR_MODE; }

  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

}  // namespace chaski::cuda
