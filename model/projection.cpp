#include "model/projection.h"

#include "kernels/products/matmul.h"

namespace chaski {

bool Projection::is_trainable() const {
  for (std::int64_t i = first_; i < first_ + count_; ++i) {
    if ((*parameters_)[i].gradient) return true;
  }
  return false;
}

void Projection::forward(const Tensor& x, const Tensor& y) const {
  linear_forward(x, weight_, y);
}

void Projection::backward_input(const Tensor& dy, const Tensor& dx) const {
  linear_backward_input(dy, weight_, dx);
}

void Projection::backward_weight(const Tensor& dy, const Tensor& x) const {
  if (const Tensor fused = parameters_->fused_gradients(first_, count_)) {
    linear_backward_weight(dy, x, fused);
    return;
  }
  std::int64_t column = 0;
  for (std::int64_t i = first_; i < first_ + count_; ++i) {
    const Parameter& parameter = (*parameters_)[i];
    const std::int64_t out = parameter.shape[0];
    if (parameter.gradient) {
      linear_backward_weight(Matrix(dy).columns(column, out), x, parameter.gradient);
    }
    column += out;
  }
}

}  // namespace chaski
