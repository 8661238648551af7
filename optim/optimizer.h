#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device/device.h"
#include "model/parameter.h"

namespace chaski {

// A tensor of optimizer state under the name it has in a checkpoint, e.g.
// "first_moment/model.layers.3.mlp.up_proj.weight".
struct NamedTensor {
  std::string name;
  Tensor tensor;
};

struct OptimizerStep {
  std::int64_t step;      // 1-based number of updates including this one
  double learning_rate;   // of this step, from the schedule
  double gradient_scale;  // multiplies every gradient (clipping)
};

// Updates parameters in place from their gradients. Created once per stage.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  virtual void step(const OptimizerStep& step) = 0;
  // Everything that a checkpoint must hold beside the step number; views, valid as long as this.
  virtual std::vector<NamedTensor> state() = 0;
  virtual std::string name() const = 0;
};

}  // namespace chaski
