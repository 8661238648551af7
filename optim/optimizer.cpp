#include "optim/optimizer.h"

namespace chaski {

double ParameterCount::num_elements() const {
  double elements = count;
  for (int i = 0; i < shape.rank(); ++i) elements *= static_cast<double>(shape[i]);
  return elements;
}

}  // namespace chaski
