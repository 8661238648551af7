#include "kernels/attention/cudnn_attention.h"

#include <array>
#include <fmt/format.h>
#include <map>
#include <optional>
#include <stdexcept>

#include "kernels/attention/cudnn_attention_plan.h"
#include "kernels/device/cuda_context.h"

namespace chaski::cuda {
namespace {

struct Plans {
  std::optional<AttentionPlan> forward;
  std::optional<AttentionPlan> backward;
  std::string refusal;

  const AttentionPlan& plan(AttentionPass pass) const {
    return (pass == AttentionPass::forward ? forward : backward).value();
  }
};

// Of one device: the handle and what was planned.
class Library {
 public:
  Library() = default;
  ~Library() {
    plans_.clear();
    if (handle_ != nullptr) cudnn().Destroy(handle_);
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  const Plans& plans(Device& device, const AttentionShape& shape) {
    const Key key = {shape.batch, shape.sequence_length, shape.num_heads, shape.num_kv_heads,
                     shape.head_dim};
    const auto [entry, is_new] = plans_.try_emplace(key);
    if (is_new) make_plans(device, shape, entry->second);
    return entry->second;
  }

  void run(const char* op, AttentionPass pass, const AttentionShape& shape, Device& device,
           const std::vector<void*>& operands) {
    const AttentionPlan& plan = plans(device, shape).plan(pass);
    Workspace::Frame frame(device);
    const Tensor workspace = frame.tensor(DType::u8, {plan.workspace_bytes()});
    try {
      plan.run(handle_, operands, workspace.raw());
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(fmt::format("{}: {}", op, error.what()));
    }
  }

 private:
  using Key = std::array<std::int64_t, 5>;

  void make_plans(Device& device, const AttentionShape& shape, Plans& plans) {
    try {
      const CudnnTarget target = target_of(context_of(device));
      plans.forward.emplace(target, AttentionPass::forward, shape);
      plans.backward.emplace(target, AttentionPass::backward, shape);
    } catch (const std::runtime_error& error) {
      plans.refusal = error.what();
    }
  }

  CudnnTarget target_of(const Context& context) {
    if (handle_ == nullptr) {
      cudnnHandle_t handle = nullptr;
      check_cudnn(cudnn().Create(&handle), "starting");
      handle_ = handle;
      check_cudnn(cudnn().SetStream(handle_, context.stream()), "taking the stream");
    }
    const auto attribute = [&](cudaDeviceAttr name) {
      int value = 0;
      check(cudaDeviceGetAttribute(&value, name, context.ordinal()), "asking for the architecture");
      return value;
    };
    CudnnTarget target;
    target.handle = handle_;
    target.architecture = attribute(cudaDevAttrComputeCapabilityMajor) * 10 +
                          attribute(cudaDevAttrComputeCapabilityMinor);
    return target;
  }

  cudnnHandle_t handle_ = nullptr;
  std::map<Key, Plans> plans_;
};

Library& library_of(Device& device) {
  return context_of(device).state<Library>();
}

// Of a matrix of bf16.
void* at(const Tensor& tensor, std::int64_t element) {
  return tensor.as<std::uint16_t>() + element;
}

}  // namespace

const std::string& cudnn_refusal(Device& device, const AttentionShape& shape) {
  return library_of(device).plans(device, shape).refusal;
}

std::string describe_cudnn() {
  return cudnn_version_text(cudnn().GetVersion());
}

std::int64_t cudnn_workspace_bytes(Device& device, AttentionPass pass,
                                   const AttentionShape& shape) {
  return charged_bytes(library_of(device).plans(device, shape).plan(pass).workspace_bytes());
}

void cudnn_attention_forward(const AttentionShape& shape, const Tensor& qkv, const Tensor& out,
                             const Tensor& log_sum_exp) {
  const std::int64_t keys = shape.query_size(), values = keys + shape.kv_size();
  Device& device = qkv.device();
  library_of(device).run(
      "attention_forward", AttentionPass::forward, shape, device,
      {at(qkv, 0), at(qkv, keys), at(qkv, values), at(out, 0), log_sum_exp.f32()});
}

void cudnn_attention_backward(const AttentionShape& shape, const Tensor& qkv, const Tensor& out,
                              const Tensor& log_sum_exp, const Tensor& dout, const Tensor& dqkv) {
  const std::int64_t keys = shape.query_size(), values = keys + shape.kv_size();
  Device& device = qkv.device();
  library_of(device).run("attention_backward", AttentionPass::backward, shape, device,
                         {at(qkv, 0), at(qkv, keys), at(qkv, values), at(out, 0), log_sum_exp.f32(),
                          at(dout, 0), at(dqkv, 0), at(dqkv, keys), at(dqkv, values)});
}

}  // namespace chaski::cuda
