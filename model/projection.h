#pragma once

#include <cstdint>

#include "kernels/device/tensor.h"
#include "model/parameter.h"

namespace chaski {

// Adjacent matrices of a ParameterSet that multiply the same input x [T, in]; their outputs lie
// side by side in y [T, sum of out].
class Projection {
 public:
  Projection(ParameterSet& parameters, std::int64_t first, std::int64_t count)
      : parameters_(&parameters), first_(first), count_(count) {}
  // To be called once the set's values are allocated.
  void bind() { weight_ = parameters_->fused_compute(first_, count_); }

  const Tensor& weight() const { return weight_; }  // [sum of out, in]
  // Whether backward_weight() has anything to do.
  bool is_trainable() const;

  void forward(const Tensor& x, const Tensor& y) const;
  void backward_input(const Tensor& dy, const Tensor& dx) const;
  // Adds to the gradients of the matrices that are not frozen.
  void backward_weight(const Tensor& dy, const Tensor& x) const;

 private:
  ParameterSet* parameters_;
  std::int64_t first_;
  std::int64_t count_;
  Tensor weight_;
};

}  // namespace chaski
