#include "kernels/attention/cudnn_descriptor.h"

#include <utility>

namespace chaski::cuda {
namespace {

std::vector<cudnnBackendDescriptor_t> raw_of(const std::vector<CudnnDescriptor>& parts) {
  std::vector<cudnnBackendDescriptor_t> raw;
  for (const CudnnDescriptor& part : parts) raw.push_back(part.raw());
  return raw;
}

}  // namespace

CudnnDescriptor::CudnnDescriptor(cudnnBackendDescriptorType_t type) {
  check_cudnn(cudnn().BackendCreateDescriptor(type, &descriptor_), "making a descriptor");
}

CudnnDescriptor::~CudnnDescriptor() {
  if (descriptor_ != nullptr) cudnn().BackendDestroyDescriptor(descriptor_);
}

CudnnDescriptor::CudnnDescriptor(CudnnDescriptor&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, nullptr)) {}

CudnnDescriptor& CudnnDescriptor::operator=(CudnnDescriptor&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

void CudnnDescriptor::set(Name name, Type type, std::int64_t count, const void* values) {
  check_cudnn(cudnn().BackendSetAttribute(descriptor_, name, type, count, values),
              "setting an attribute");
}

void CudnnDescriptor::set(Name name, const std::array<std::int64_t, 4>& values) {
  set(name, CUDNN_TYPE_INT64, static_cast<std::int64_t>(values.size()), values.data());
}

void CudnnDescriptor::set(Name name, const CudnnDescriptor& part) {
  set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &part.descriptor_);
}

void CudnnDescriptor::set(Name name, const std::vector<CudnnDescriptor>& parts) {
  const std::vector<cudnnBackendDescriptor_t> raw = raw_of(parts);
  set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, static_cast<std::int64_t>(raw.size()), raw.data());
}

void CudnnDescriptor::finalize(const char* what) {
  check_cudnn(cudnn().BackendFinalize(descriptor_), what);
}

std::int64_t CudnnDescriptor::get(Name name, Type type, std::int64_t count, void* values) const {
  std::int64_t found = 0;
  check_cudnn(cudnn().BackendGetAttribute(descriptor_, name, type, count, &found, values),
              "reading an attribute");
  return found;
}

void CudnnDescriptor::get(Name name, CudnnDescriptor& part) const {
  get(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &part.descriptor_);
}

std::int64_t CudnnDescriptor::get(Name name, std::vector<CudnnDescriptor>& parts) const {
  std::vector<cudnnBackendDescriptor_t> raw = raw_of(parts);
  return get(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, static_cast<std::int64_t>(raw.size()),
             raw.data());
}

}  // namespace chaski::cuda
