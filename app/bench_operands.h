#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "kernels/device.h"

namespace chaski {

// Memory that the operands of all ops of a benchmark are carved from, one op after the other. An
// op walks through as many sets of operands as fit, so that it finds none of them in a cache: in a
// training step other ops have been there in between, too.
class BenchOperands {
 public:
  // Large enough for one set of each of `sets` and for kMinBytes.
  BenchOperands(Device& device, const std::vector<std::vector<Shape>>& sets);

  // Numbers as they occur in a model; none of them is negative, because some operands (second
  // moments) never are.
  void refill();
  const Tensor& memory() const { return memory_.tensor(); }

  // fp32 operands of these shapes, another set at every call, until all sets have had their turn.
  class Sets {
   public:
    const std::vector<Tensor>& next();

   private:
    friend class BenchOperands;
    std::vector<std::vector<Tensor>> sets_;
    std::size_t turn_ = 0;
  };
  Sets carve(const std::vector<Shape>& shapes) const;

  // Several times the last-level cache of a large server's core complex.
  static constexpr std::int64_t kMinBytes = std::int64_t{256} << 20;

 private:
  Buffer memory_;
};

}  // namespace chaski
