#pragma once

#include <vector>

#include "kernels/device/op_count.h"

namespace chaski {

// Floating-point operations of one kind and the memory traffic of everything else.
struct Work {
  double gemm_flops = 0.0;
  double channel_flops = 0.0;  // in products of MoC's kept channels alone (kernels/moc/products.h)
  double attention_forward_flops = 0.0;
  double attention_backward_flops = 0.0;
  double traffic_bytes = 0.0;  // read and written by what is bound by memory

  double product_flops() const { return gemm_flops + channel_flops; }
  double attention_flops() const { return attention_forward_flops + attention_backward_flops; }
  double flops() const { return product_flops() + attention_flops(); }
  Work& operator+=(const Work& other);
};

// Of ops that a counting device has counted.
Work work_of(const std::vector<OpCount>& ops);

}  // namespace chaski
