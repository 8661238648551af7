#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "model/precision.h"

namespace chaski {

enum class ParameterKind { embedding, attention, ffn, norm, head };
const char* name_of(ParameterKind kind);

// The number of a random stream of its own for each parameter, from its name: the same whatever
// process and stage has it.
std::uint64_t random_stream_of(const std::string& parameter_name);

// A trainable tensor under its Hugging Face name, e.g. "model.layers.3.mlp.up_proj.weight".
struct Parameter {
  std::string name;
  ParameterKind kind = ParameterKind::norm;
  std::int64_t layer = -1;  // -1: not in a block
  Shape shape;              // [out, in], or [hidden_size] for a norm
  Tensor value;             // what the optimizer updates and checkpoints hold
  Tensor compute;           // what ops read: `value` itself, or its rounded copy in mixed precision
  Tensor gradient;          // empty while the parameter is frozen

  bool is_matrix() const { return shape.rank() == 2; }
};

// Owns the values and gradients of a stage's parameters: one buffer for the values, one for the
// rounded copy in mixed precision and one for the gradients, all in the order in which the
// parameters were added, which is that of the forward pass. Parameters of one group lie next to
// each other without a gap, so that their values (and gradients, when none of the group is frozen)
// can be used as one tensor.
class ParameterSet {
 public:
  // Elements to a multiple of which groups of parameters begin, in all buffers: on a cache line, so
  // that vector loads of their rows are aligned.
  static std::int64_t group_alignment(const TensorTypes& types);

  explicit ParameterSet(Device& device, const TensorTypes& types = {})
      : device_(device), types_(types) {}

  // Adds a parameter; consecutive parameters with the same non-empty group are adjacent.
  // All must be added before allocate().
  void add(std::string name, ParameterKind kind, std::int64_t layer, Shape shape,
           const std::string& group = "");
  // Allocates the values (zeroed).
  void allocate();
  // (Re)allocates gradients for those parameters for which `trainable` is true, zeroed.
  void allocate_gradients(const std::function<bool(const Parameter&)>& trainable);
  void zero_gradients();
  // Rounds the values into the copy that ops read, where there is one: to be called by whoever has
  // changed values, but for the optimizer, which does it itself.
  void refresh_compute();
  // To be called by the optimizer instead, which refreshes that copy itself.
  void values_changed() { ++version_; }
  // Another number after each of these two: for those who hold something made of the values.
  std::int64_t version() const { return version_; }

  std::int64_t size() const { return static_cast<std::int64_t>(parameters_.size()); }
  Parameter& operator[](std::int64_t i) { return parameters_[i]; }
  const Parameter& operator[](std::int64_t i) const { return parameters_[i]; }
  auto begin() { return parameters_.begin(); }
  auto end() { return parameters_.end(); }
  auto begin() const { return parameters_.begin(); }
  auto end() const { return parameters_.end(); }
  // Throws std::out_of_range naming the parameter.
  std::int64_t index_of(const std::string& name) const;
  Parameter& at(const std::string& name) { return parameters_[index_of(name)]; }
  std::int64_t num_elements() const;

  // What ops read (the gradients) of `count` adjacent parameters from `first` on as one tensor
  // [sum of out, in]. Gradients: empty unless all of them have one.
  Tensor fused_compute(std::int64_t first, std::int64_t count) const;
  Tensor fused_gradients(std::int64_t first, std::int64_t count) const;
  // The whole gradient buffer as a vector, padding included.
  Tensor all_gradients() const { return gradients_.tensor(); }

  Device& device() const { return device_; }
  const TensorTypes& types() const { return types_; }

 private:
  // Offset of each parameter in a buffer that holds the wanted ones, and the buffer's size.
  std::vector<std::int64_t> place(const std::function<bool(const Parameter&)>& wanted) const;

  // Each parameter's part of a buffer as a tensor.
  Tensor part_of(const Buffer& buffer, std::int64_t offset, const Shape& shape) const;

  Device& device_;
  TensorTypes types_;
  std::vector<Parameter> parameters_;
  std::vector<std::string> groups_;
  std::int64_t version_ = 0;
  Buffer values_;
  Buffer compute_;
  Buffer gradients_;
};

}  // namespace chaski
