#pragma once

#include <string>
#include <vector>

#include "app/bench/report.h"
#include "kernels/device/tensor.h"

namespace chaski {

// What memory can do at most, as John McCalpin's STREAM counts it: bytes that the program reads
// and writes, not what the processor moves beside them. Each in its fastest form of stores through
// and past the caches.
class MemoryBandwidth {
 public:
  // Over `memory` (fp32, far larger than the caches), whose contents are lost, with its device's
  // threads; on a GPU with its own copies, and ops for the rest.
  explicit MemoryBandwidth(const Tensor& memory) : memory_(memory) {}

  // To be measured along with what they are compared with.
  std::vector<BenchSeries> series() const;
  // Takes the measured series. GB/s (10⁹ bytes) of their best runs: read (Σ a), write (a = 0),
  // copy (a = b), triad (a = b + s·c). On a GPU read is as copy.
  struct Rates {
    double read = 0.0;
    double write = 0.0;
    double copy = 0.0;
    double triad = 0.0;
    double best_mixed() const { return copy > triad ? copy : triad; }
  };
  Rates rates(const std::vector<BenchSeries>& measured) const;

 private:
  Tensor memory_;
};

// {"read", "write", "copy", "triad"} in GB/s.
nlohmann::json to_json(const MemoryBandwidth::Rates& rates);

}  // namespace chaski
