#include "model/precision.h"

namespace chaski {

const char* name_of(Precision precision) {
  switch (precision) {
    case Precision::fp32:
      return "fp32";
    case Precision::bf16:
      return "bf16";
    case Precision::bf16_pure:
      return "bf16-pure";
  }
  return "unknown";
}

TensorTypes types_of(Precision precision) {
  switch (precision) {
    case Precision::fp32:
      break;
    case Precision::bf16:
      return {DType::bf16, DType::f32, DType::f32, DType::f32};
    case Precision::bf16_pure:
      return {DType::bf16, DType::bf16, DType::bf16, DType::bf16};
  }
  return {};
}

}  // namespace chaski
