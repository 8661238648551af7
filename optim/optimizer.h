#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/device/device.h"
#include "model/parameter.h"

namespace chaski {

// A tensor of optimizer state under the name that it has in a checkpoint, e.g.
// "first_moment/model.layers.3.mlp.up_proj.weight". It may lie on a device or in host memory.
struct NamedTensor {
  std::string name;
  Tensor tensor;
  // Belongs to the whole model: every stage holds an equal one, a checkpoint one of them.
  bool of_model = false;
};

// Parameters of a kind and shape that need not exist: so many of them, or a share of one.
struct ParameterCount {
  ParameterKind kind;
  Shape shape;
  double count;

  // Of all together; in double, which no config overflows.
  double num_elements() const;
};

// The optimizer state that a checkpoint holds, by the names of state().
class StateSource {
 public:
  struct Stored {
    DType dtype;
    Shape shape;
  };
  virtual ~StateSource() = default;
  virtual std::optional<Stored> find(const std::string& name) const = 0;
  // Fills the tensor, on a device or in host memory. Throws std::invalid_argument naming the
  // checkpoint and the tensor when it holds none of this name, type and shape.
  virtual void read(const std::string& name, const Tensor& tensor) const = 0;
};

struct OptimizerStep {
  // The updates of the run so far, this one included: steps that were skipped do not count.
  std::int64_t updates = 1;
  double learning_rate = 0.0;   // of this step, from the schedule
  double gradient_scale = 1.0;  // multiplies every gradient (clipping)
  // One for each parameter of the set, by which its gradient is multiplied, too; 0 leaves the
  // parameter out: its weights and its state stay as they are, and for it the update does not
  // count. Empty: 1 for all.
  std::span<const double> parameter_scales{};
};

// Updates the trainable parameters of a stage in place: those that had a gradient when the
// optimizer was made.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  virtual void step(const OptimizerStep& step) = 0;
  // Everything that a checkpoint must hold beside the number of updates; views, valid as long as
  // this. Which tensors there are may change with each step.
  virtual std::vector<NamedTensor> state() = 0;
  // Takes over what state() of another one of the same kind was saved as. Throws what the source
  // throws; this is then of no use.
  virtual void load(const StateSource& source) = 0;
  virtual std::string name() const = 0;
};

}  // namespace chaski
