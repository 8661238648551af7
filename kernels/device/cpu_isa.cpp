#include "kernels/device/cpu_isa.h"

#include <cstdlib>
#include <fmt/format.h>
#include <stdexcept>
#include <string_view>

namespace chaski {
namespace {

constexpr CpuIsa kAllIsas[] = {CpuIsa::baseline, CpuIsa::avx2, CpuIsa::avx512};

// The features that -march=x86-64-v3 and -v4 let the compiler use.
CpuIsa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                  __builtin_cpu_supports("f16c") && __builtin_cpu_supports("lzcnt") &&
                  __builtin_cpu_supports("movbe");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  return v4 ? CpuIsa::avx512 : (v3 ? CpuIsa::avx2 : CpuIsa::baseline);
#else
  return CpuIsa::baseline;
#endif
}

CpuIsa choose_isa() {
  const CpuIsa best = best_isa();
  const char* wanted = std::getenv("CHASKI_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  for (const CpuIsa isa : kAllIsas) {
    if (std::string_view(wanted) != name_of(isa)) continue;
    if (isa <= best) return isa;
    throw std::invalid_argument(
        fmt::format("environment variable CHASKI_ISA is {}, but this processor has {} at most",
                    wanted, name_of(best)));
  }
  throw std::invalid_argument(fmt::format(
      "environment variable CHASKI_ISA is \"{}\": it can be baseline, avx2 or avx512", wanted));
}

}  // namespace

CpuIsa cpu_isa() {
  static const CpuIsa isa = choose_isa();
  return isa;
}

const char* name_of(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::baseline:
      return "baseline";
    case CpuIsa::avx2:
      return "avx2";
    case CpuIsa::avx512:
      return "avx512";
  }
  return "unknown";
}

}  // namespace chaski
