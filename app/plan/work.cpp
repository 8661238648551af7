#include "app/plan/work.h"

#include <string_view>

namespace chaski {

Work& Work::operator+=(const Work& other) {
  gemm_flops += other.gemm_flops;
  channel_flops += other.channel_flops;
  attention_forward_flops += other.attention_forward_flops;
  attention_backward_flops += other.attention_backward_flops;
  traffic_bytes += other.traffic_bytes;
  return *this;
}

Work work_of(const std::vector<OpCount>& ops) {
  Work work;
  for (const OpCount& op : ops) {
    const std::string_view name = op.op;
    if (name.starts_with("gemm_")) {
      work.gemm_flops += op.flops;
    } else if (name.starts_with("moc_products_")) {
      work.channel_flops += op.flops;
    } else if (name == "attention_forward") {
      work.attention_forward_flops += op.flops;
    } else if (name == "attention_backward") {
      work.attention_backward_flops += op.flops;
    } else {
      work.traffic_bytes += op.bytes;
    }
  }
  return work;
}

}  // namespace chaski
