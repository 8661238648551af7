#include "kernels/attention/cudnn_graph.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <stdexcept>
#include <utility>

namespace chaski::cuda {
namespace {

constexpr std::int64_t kAlignment = 16;  // bytes, of every operand
constexpr std::int64_t kWorkspaceAlignment = 256;

std::int64_t rounded_up(std::int64_t bytes) {
  return (bytes + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
}

cudnnDataType_t data_type_of(GraphType type) {
  switch (type) {
    case GraphType::f32:
      return CUDNN_DATA_FLOAT;
    case GraphType::bf16:
      return CUDNN_DATA_BFLOAT16;
    case GraphType::i32:
      return CUDNN_DATA_INT32;
    case GraphType::boolean:
      return CUDNN_DATA_BOOLEAN;
  }
  throw std::logic_error("cuDNN: no such type");
}

// Packed, as are all that lie in the workspace.
std::int64_t packed_bytes_of(const GraphTensor& tensor) {
  return tensor.dims[0] * tensor.strides[0] * bytes_of(tensor.type);
}

// Numbers begin at 1.
std::int64_t id_of(std::size_t tensor) {
  return static_cast<std::int64_t>(tensor) + 1;
}

CudnnDescriptor describe(const GraphTensor& tensor, std::int64_t id) {
  CudnnDescriptor descriptor(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  descriptor.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, id);
  descriptor.set(CUDNN_ATTR_TENSOR_DATA_TYPE, data_type_of(tensor.type));
  descriptor.set(CUDNN_ATTR_TENSOR_DIMENSIONS, tensor.dims);
  descriptor.set(CUDNN_ATTR_TENSOR_STRIDES, tensor.strides);
  descriptor.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, kAlignment);
  descriptor.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, tensor.place == GraphPlace::inside);
  descriptor.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, tensor.place == GraphPlace::constant);
  descriptor.finalize("describing a tensor");
  return descriptor;
}

cudnnPointwiseMode_t mode_of(GraphOperator kind) {
  switch (kind) {
    case GraphOperator::multiply:
      return CUDNN_POINTWISE_MUL;
    case GraphOperator::divide:
      return CUDNN_POINTWISE_DIV;
    case GraphOperator::add:
      return CUDNN_POINTWISE_ADD;
    case GraphOperator::subtract:
      return CUDNN_POINTWISE_SUB;
    case GraphOperator::exponential:
      return CUDNN_POINTWISE_EXP;
    case GraphOperator::logarithm:
      return CUDNN_POINTWISE_LOG;
    case GraphOperator::index:
      return CUDNN_POINTWISE_GEN_INDEX;
    case GraphOperator::at_least:
      return CUDNN_POINTWISE_CMP_GE;
    case GraphOperator::select:
      return CUDNN_POINTWISE_BINARY_SELECT;
    default:
      throw std::logic_error("cuDNN: not a pointwise operation");
  }
}

// Tensors and operations, which refer to each other, of one graph.
class GraphDescription {
 public:
  explicit GraphDescription(const Graph& graph) {
    for (std::size_t i = 0; i < graph.tensors.size(); ++i)
      tensors_.push_back(describe(graph.tensors[i], id_of(i)));
    for (const GraphOperation& operation : graph.operations) add(operation);
  }

  CudnnDescriptor finalize(const CudnnTarget& target) const {
    CudnnDescriptor graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    if (target.handle != nullptr) graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, target.handle);
    graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, operations_);
    graph.finalize("describing the graph");
    return graph;
  }

 private:
  const CudnnDescriptor& tensor(int number) const {
    return tensors_[static_cast<std::size_t>(number)];
  }

  void add(const GraphOperation& operation) {
    switch (operation.kind) {
      case GraphOperator::matmul:
        return add_matmul(operation);
      case GraphOperator::sum:
        return add_reduction(operation, CUDNN_REDUCE_TENSOR_ADD);
      case GraphOperator::largest:
        return add_reduction(operation, CUDNN_REDUCE_TENSOR_MAX);
      case GraphOperator::transpose:
        return add_transpose(operation);
      default:
        return add_pointwise(operation);
    }
  }

  void add_matmul(const GraphOperation& operation) {
    CudnnDescriptor kind(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    kind.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_DATA_FLOAT);
    kind.finalize("describing a product");
    CudnnDescriptor descriptor(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    descriptor.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, tensor(operation.inputs[0]));
    descriptor.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, tensor(operation.inputs[1]));
    descriptor.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, tensor(operation.output));
    descriptor.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, kind);
    keep(std::move(kind), std::move(descriptor), "describing a product");
  }

  void add_reduction(const GraphOperation& operation, cudnnReduceTensorOp_t reduction) {
    CudnnDescriptor kind(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    kind.set(CUDNN_ATTR_REDUCTION_OPERATOR, reduction);
    kind.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT);
    kind.finalize("describing a reduction");
    CudnnDescriptor descriptor(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    descriptor.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, tensor(operation.inputs[0]));
    descriptor.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, tensor(operation.output));
    descriptor.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, kind);
    keep(std::move(kind), std::move(descriptor), "describing a reduction");
  }

  void add_transpose(const GraphOperation& operation) {
    CudnnDescriptor descriptor(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    descriptor.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, tensor(operation.inputs[0]));
    descriptor.set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, tensor(operation.output));
    descriptor.finalize("describing a transposition");
    operations_.push_back(std::move(descriptor));
  }

  void add_pointwise(const GraphOperation& operation) {
    CudnnDescriptor kind(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    kind.set(CUDNN_ATTR_POINTWISE_MODE, mode_of(operation.kind));
    kind.set(CUDNN_ATTR_POINTWISE_MATH_PREC,
             operation.kind == GraphOperator::at_least ? CUDNN_DATA_BOOLEAN : CUDNN_DATA_FLOAT);
    if (operation.kind == GraphOperator::index) kind.set(CUDNN_ATTR_POINTWISE_AXIS, operation.axis);
    kind.finalize("describing an operation by elements");
    CudnnDescriptor descriptor(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    descriptor.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, kind);
    constexpr cudnnBackendAttributeName_t kInputs[] = {CUDNN_ATTR_OPERATION_POINTWISE_XDESC,
                                                       CUDNN_ATTR_OPERATION_POINTWISE_BDESC,
                                                       CUDNN_ATTR_OPERATION_POINTWISE_TDESC};
    for (std::size_t i = 0; i < operation.inputs.size(); ++i)
      descriptor.set(kInputs[i], tensor(operation.inputs[i]));
    descriptor.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, tensor(operation.output));
    keep(std::move(kind), std::move(descriptor), "describing an operation by elements");
  }

  void keep(CudnnDescriptor kind, CudnnDescriptor operation, const char* what) {
    operation.finalize(what);
    kinds_.push_back(std::move(kind));
    operations_.push_back(std::move(operation));
  }

  std::vector<CudnnDescriptor> tensors_, kinds_, operations_;
};

// The engines that cuDNN would take, best first, with their settings.
std::vector<CudnnDescriptor> proposed_engines(const CudnnTarget& target,
                                              const CudnnDescriptor& graph) {
  CudnnDescriptor heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_HEUR_MODE_A);
#if CUDNN_VERSION >= 90800
  if (target.properties != nullptr)
    heuristics.set(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, *target.properties);
#endif
  heuristics.finalize("asking for engines");
  std::vector<CudnnDescriptor> engines;
  const std::int64_t most = heuristics.get(CUDNN_ATTR_ENGINEHEUR_RESULTS, engines);
  for (std::int64_t i = 0; i < most; ++i) engines.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
  // Less those that turn out not to take the graph.
  const std::int64_t count = heuristics.get(CUDNN_ATTR_ENGINEHEUR_RESULTS, engines);
  engines.erase(engines.begin() + std::min(count, most), engines.end());
  return engines;
}

bool says_deterministic(const CudnnDescriptor& config) {
  CudnnDescriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  config.get(CUDNN_ATTR_ENGINECFG_ENGINE, engine);
  std::array<cudnnBackendNumericalNote_t, CUDNN_NUMERICAL_NOTE_TYPE_COUNT> notes{};
  const auto most = static_cast<std::int64_t>(notes.size());
  const std::int64_t count =
      engine.get(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, most, notes.data());
  const auto end = notes.begin() + std::min(count, most);
  return std::find(notes.begin(), end, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) == end;
}

CudnnDescriptor finalized_plan(const CudnnTarget& target, const CudnnDescriptor& config) {
  CudnnDescriptor plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  if (target.handle != nullptr) plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, target.handle);
#if CUDNN_VERSION >= 90800
  if (target.properties != nullptr)
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, *target.properties);
#endif
  plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
  plan.finalize("making a plan");
  return plan;
}

// By the first engine that takes the graph.
CudnnDescriptor first_plan(const CudnnTarget& target, const Graph& graph) {
  const GraphDescription description(graph);
  const CudnnDescriptor operations = description.finalize(target);
  cudnn_reason();  // no older one
  const std::vector<CudnnDescriptor> engines = proposed_engines(target, operations);
  std::string reason = engines.empty() ? cudnn_reason() : "";
  reason = "cuDNN has no engine for it" + (reason.empty() ? "" : ": " + reason);
  for (const CudnnDescriptor& config : engines) {
    if (!says_deterministic(config)) {
      reason = "cuDNN has no engine for it that gives the same bits each time";
      continue;
    }
    try {
      return finalized_plan(target, config);
    } catch (const std::runtime_error& error) {
      reason = error.what();
    }
  }
  throw std::runtime_error(reason);
}

}  // namespace

CudnnDescriptor described_gpu(const std::string& json) {
#if CUDNN_VERSION >= 90800
  CudnnDescriptor properties(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  properties.set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                 static_cast<std::int64_t>(json.size()), json.data());
  properties.finalize("describing a GPU");
  return properties;
#else
  static_cast<void>(json);
  throw std::runtime_error("cuDNN plans for a GPU that is only described from 9.8 on");
#endif
}

CudnnPlan::CudnnPlan(const CudnnTarget& target, const Graph& graph)
    : plan_(first_plan(target, graph)) {
  std::int64_t end = 0;
  plan_.get(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &end);
  for (std::size_t i = 0; i < graph.tensors.size(); ++i) {
    const GraphTensor& tensor = graph.tensors[i];
    if (tensor.place == GraphPlace::inside) continue;
    Placed placed{id_of(i), tensor.place, 0, tensor.constant};
    if (tensor.place == GraphPlace::workspace) {
      placed.offset = rounded_up(end);
      end = placed.offset + packed_bytes_of(tensor);
    }
    placed_.push_back(placed);
  }
  // At least one byte, so that the pointer is none of nothing.
  workspace_bytes_ = std::max<std::int64_t>(end, 1);
}

bool CudnnPlan::is_deterministic() const {
  CudnnDescriptor config(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
  plan_.get(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
  return says_deterministic(config);
}

void CudnnPlan::run(cudnnHandle_t handle, const std::vector<void*>& operands,
                    void* workspace) const {
  std::vector<std::int64_t> ids;
  std::vector<void*> pointers;
  std::size_t next_operand = 0;
  for (const Placed& placed : placed_) {
    ids.push_back(placed.id);
    switch (placed.place) {
      case GraphPlace::workspace:
        pointers.push_back(static_cast<std::byte*>(workspace) + placed.offset);
        break;
      case GraphPlace::constant:
        pointers.push_back(const_cast<float*>(&placed.constant));  // only read
        break;
      default:
        pointers.push_back(operands.at(next_operand++));
    }
  }
  CudnnDescriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  const auto count = static_cast<std::int64_t>(ids.size());
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, ids.data());
  pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, pointers.data());
  pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
  pack.finalize("naming the operands");
  check_cudnn(cudnn().BackendExecute(handle, plan_.raw(), pack.raw()), "running the graph");
}

}  // namespace chaski::cuda
