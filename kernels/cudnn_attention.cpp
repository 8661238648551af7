#include "kernels/cudnn_attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cudnn_frontend.h>
#include <fmt/format.h>
#include <map>
#include <memory>
#include <stdexcept>
#include <unordered_map>
#include <vector>

#include "kernels/cuda_context.h"

namespace chaski::cuda {
namespace {

namespace fe = cudnn_frontend;
using fe::graph::Graph;
using GraphTensor = std::shared_ptr<fe::graph::Tensor_attributes>;
using Pointers = std::unordered_map<std::int64_t, void*>;

// Names of a graph's operands.
enum Operand : std::int64_t {
  kQueries = 1,
  kKeys,
  kValues,
  kOut,
  kLogSumExp,
  kDout,
  kDqueries,
  kDkeys,
  kDvalues,
};

// Heads of head_dim elements side by side in rows of `row_size` elements, a row a token.
using Dims = std::vector<std::int64_t>;
Dims dims_of(const AttentionShape& shape, std::int64_t heads) {
  return {shape.batch, heads, shape.sequence_length, shape.head_dim};
}
Dims strides_of(const AttentionShape& shape, std::int64_t row_size) {
  return {shape.sequence_length * row_size, shape.head_dim, row_size, 1};
}

// One pass of one shape, ready to run.
struct Plan {
  std::shared_ptr<Graph> graph;
  std::int64_t workspace_bytes = 1;

  void run(const char* op, cudnnHandle_t handle, Device& device, Pointers pointers) const {
    Workspace::Frame frame(device);
    const Tensor workspace = frame.tensor(DType::u8, {workspace_bytes});
    const fe::error_t status = graph->execute(handle, pointers, workspace.raw());
    if (status.is_bad())
      throw std::runtime_error(fmt::format("{}: cuDNN failed: {}", op, status.err_msg));
  }
};

class GraphBuilder {
 public:
  explicit GraphBuilder(const AttentionShape& shape)
      : shape_(shape), graph_(std::make_shared<Graph>()) {
    graph_->set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
  }

  void add_forward() {
    auto options = fe::graph::SDPA_attributes()
                       .set_name("attention")
                       .set_generate_stats(true)
                       .set_causal_mask(true)
                       .set_attn_scale(scale());
    auto outputs = graph_->sdpa(queries(kQueries), keys(kKeys), keys(kValues), options);
    declare_heads(outputs[0], kOut, shape_.num_heads, shape_.query_size());
    outputs[0]->set_output(true);
    declare_statistics(outputs[1], kLogSumExp);
    outputs[1]->set_output(true);
  }

  void add_backward() {
    auto options = fe::graph::SDPA_backward_attributes()
                       .set_name("attention_backward")
                       .set_causal_mask(true)
                       .set_deterministic_algorithm(true)
                       .set_attn_scale(scale());
    const GraphTensor statistics = graph_->tensor(fe::graph::Tensor_attributes());
    declare_statistics(statistics, kLogSumExp);
    auto gradients = graph_->sdpa_backward(queries(kQueries), keys(kKeys), keys(kValues), out(kOut),
                                           out(kDout), statistics, options);
    declare_heads(gradients[0], kDqueries, shape_.num_heads, shape_.qkv_size());
    declare_heads(gradients[1], kDkeys, shape_.num_kv_heads, shape_.qkv_size());
    declare_heads(gradients[2], kDvalues, shape_.num_kv_heads, shape_.qkv_size());
    for (const GraphTensor& gradient : gradients) gradient->set_output(true);
  }

  // Empty where cuDNN made a plan, else its reason.
  std::string build(cudnnHandle_t handle, Plan& plan) {
    const fe::error_t status = graph_->build(handle, {fe::HeurMode_t::A});
    if (status.is_bad()) return status.err_msg.empty() ? "it gave no reason" : status.err_msg;
    plan.graph = graph_;
    // At least one byte, so that the pointer is none of nothing.
    plan.workspace_bytes = std::max<std::int64_t>(graph_->get_workspace_size(), 1);
    return {};
  }

 private:
  GraphTensor heads(Operand operand, std::int64_t num_heads, std::int64_t row_size) {
    const GraphTensor tensor = graph_->tensor(fe::graph::Tensor_attributes());
    declare_heads(tensor, operand, num_heads, row_size);
    return tensor;
  }
  GraphTensor queries(Operand operand) {
    return heads(operand, shape_.num_heads, shape_.qkv_size());
  }
  GraphTensor keys(Operand operand) {
    return heads(operand, shape_.num_kv_heads, shape_.qkv_size());
  }
  GraphTensor out(Operand operand) { return heads(operand, shape_.num_heads, shape_.query_size()); }
  void declare_heads(const GraphTensor& tensor, Operand operand, std::int64_t num_heads,
                     std::int64_t row_size) const {
    tensor->set_uid(operand)
        .set_dim(dims_of(shape_, num_heads))
        .set_stride(strides_of(shape_, row_size))
        .set_data_type(fe::DataType_t::BFLOAT16);
  }
  void declare_statistics(const GraphTensor& tensor, Operand operand) const {
    tensor->set_uid(operand)
        .set_dim({shape_.batch, shape_.num_heads, shape_.sequence_length, 1})
        .set_stride({shape_.num_heads * shape_.sequence_length, shape_.sequence_length, 1, 1})
        .set_data_type(fe::DataType_t::FLOAT);
  }
  float scale() const {
    return static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape_.head_dim)));
  }

  AttentionShape shape_;
  std::shared_ptr<Graph> graph_;
};

struct Plans {
  Plan forward;
  Plan backward;
  std::string refusal;
};

// Of one device: the handle and what was planned.
class Library {
 public:
  ~Library() {
    plans_.clear();
    if (handle_ != nullptr) cudnnDestroy(handle_);
  }

  cudnnHandle_t handle(cudaStream_t stream) {
    if (handle_ == nullptr) {
      const cudnnStatus_t status = cudnnCreate(&handle_);
      if (status != CUDNN_STATUS_SUCCESS) {
        handle_ = nullptr;
        throw std::runtime_error(
            fmt::format("cuDNN cannot be started: {}", cudnnGetErrorString(status)));
      }
      cudnnSetStream(handle_, stream);
    }
    return handle_;
  }

  const Plans& plans(Device& device, const AttentionShape& shape) {
    const Key key = {shape.batch, shape.sequence_length, shape.num_heads, shape.num_kv_heads,
                     shape.head_dim};
    const auto [entry, is_new] = plans_.try_emplace(key);
    if (is_new) entry->second = make_plans(device, shape);
    return entry->second;
  }

 private:
  using Key = std::array<std::int64_t, 5>;

  Plans make_plans(Device& device, const AttentionShape& shape) {
    Plans plans;
    try {
      const cudnnHandle_t cudnn = handle(stream_of(device));
      GraphBuilder forward(shape);
      forward.add_forward();
      plans.refusal = forward.build(cudnn, plans.forward);
      if (plans.refusal.empty()) {
        GraphBuilder backward(shape);
        backward.add_backward();
        plans.refusal = backward.build(cudnn, plans.backward);
      }
    } catch (const std::exception& error) {
      plans.refusal = error.what();
    }
    std::replace(plans.refusal.begin(), plans.refusal.end(), '\n', ' ');  // cuDNN's own words
    return plans;
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
  const std::size_t version = cudnnGetVersion();
  return fmt::format("cuDNN {}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

std::int64_t cudnn_workspace_bytes(Device& device, AttentionPass pass,
                                   const AttentionShape& shape) {
  const Plans& plans = library_of(device).plans(device, shape);
  const Plan& plan = pass == AttentionPass::forward ? plans.forward : plans.backward;
  return charged_bytes(plan.workspace_bytes);
}

void cudnn_attention_forward(const AttentionShape& shape, const Tensor& qkv, const Tensor& out,
                             const Tensor& log_sum_exp) {
  Device& device = qkv.device();
  Library& library = library_of(device);
  library.plans(device, shape)
      .forward.run("attention_forward", library.handle(stream_of(device)), device,
                   {{kQueries, at(qkv, 0)},
                    {kKeys, at(qkv, shape.query_size())},
                    {kValues, at(qkv, shape.query_size() + shape.kv_size())},
                    {kOut, at(out, 0)},
                    {kLogSumExp, log_sum_exp.f32()}});
}

void cudnn_attention_backward(const AttentionShape& shape, const Tensor& qkv, const Tensor& out,
                              const Tensor& log_sum_exp, const Tensor& dout, const Tensor& dqkv) {
  Device& device = qkv.device();
  Library& library = library_of(device);
  library.plans(device, shape)
      .backward.run("attention_backward", library.handle(stream_of(device)), device,
                    {{kQueries, at(qkv, 0)},
                     {kKeys, at(qkv, shape.query_size())},
                     {kValues, at(qkv, shape.query_size() + shape.kv_size())},
                     {kOut, at(out, 0)},
                     {kLogSumExp, log_sum_exp.f32()},
                     {kDout, at(dout, 0)},
                     {kDqueries, at(dqkv, 0)},
                     {kDkeys, at(dqkv, shape.query_size())},
                     {kDvalues, at(dqkv, shape.query_size() + shape.kv_size())}});
}

}  // namespace chaski::cuda
