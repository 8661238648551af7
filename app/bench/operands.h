#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "kernels/device/device.h"

namespace chaski {

struct BenchOperand {
  Shape shape;
  DType type = DType::f32;
};
using BenchOperandList = std::vector<BenchOperand>;

// Token ids [rows, sequence_length] i32, the same for the same seed.
Buffer random_ids(Device& device, Shape shape, std::int64_t vocab_size, unsigned seed);

// Memory that the operands of all ops of a benchmark are carved from, one op after the other. An
// op walks through as many sets of operands as fit, so that it finds none of them in a cache: in a
// training step other ops have been there in between, too.
class BenchOperands {
 public:
  // Large enough for one set of each of `sets`, and far larger than the caches. Filled with numbers
  // of `type`, f32 or bf16; operands of f32 read those as such of twice the size, positive ones,
  // too.
  BenchOperands(Device& device, DType type, const std::vector<BenchOperandList>& sets);

  // Numbers as they occur in a model; none of them is negative, because some operands (second
  // moments) never are.
  void refill();
  Tensor memory() const;  // all of it as fp32

  // Operands of these shapes and types, another set at every call, until all sets have had their
  // turn.
  class Sets {
   public:
    const std::vector<Tensor>& next();

   private:
    friend class BenchOperands;
    std::vector<std::vector<Tensor>> sets_;
    std::size_t turn_ = 0;
  };
  Sets carve(const BenchOperandList& operands) const;

 private:
  Buffer memory_;
  std::vector<float> pattern_;  // that the memory is filled with, again and again
};

}  // namespace chaski
