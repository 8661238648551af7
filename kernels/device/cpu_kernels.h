#pragma once

// How the CPU's inner loops are compiled for several instruction sets and one is chosen at run
// time.
//
// Each x_cpu.cpp is compiled once per CpuIsa with other flags, into the namespace
// CHASKI_ISA_NAMESPACE (cpu_baseline, cpu_avx2, cpu_avx512), and defines there one constant table
// of function pointers whose type is declared in x_cpu.h:
//
//   x_cpu.h    struct XKernels { void (*forward)(const float* x, std::int64_t n, int threads); };
//              CHASKI_DECLARE_KERNELS(XKernels, x_kernels);
//   x_cpu.cpp  namespace chaski::CHASKI_ISA_NAMESPACE {
//              namespace { void forward(const float* x, std::int64_t n, int threads) { … } }
//              const XKernels x_kernels = {forward};
//              }
//   x.cpp      CHASKI_CPU_KERNELS(x_kernels).forward(x.f32(), n, threads);
//
// These files include nothing that emits inline functions with external linkage (no C++ library
// headers but <cstdint> and <cstddef>): the linker keeps one copy of such a function, and that
// could be the one with instructions that this processor does not have.

#include <cstddef>
#include <cstdint>

#include "kernels/device/cpu_isa.h"

#if defined(__x86_64__)
#define CHASKI_DECLARE_KERNELS(type, name) \
  namespace cpu_baseline {                 \
  extern const type name;                  \
  }                                        \
  namespace cpu_avx2 {                     \
  extern const type name;                  \
  }                                        \
  namespace cpu_avx512 {                   \
  extern const type name;                  \
  }
#define CHASKI_CPU_KERNELS(name)                                                   \
  (::chaski::cpu_isa() == ::chaski::CpuIsa::avx512                                 \
       ? ::chaski::cpu_avx512::name                                                \
       : (::chaski::cpu_isa() == ::chaski::CpuIsa::avx2 ? ::chaski::cpu_avx2::name \
                                                        : ::chaski::cpu_baseline::name))
#else
#define CHASKI_DECLARE_KERNELS(type, name) \
  namespace cpu_baseline {                 \
  extern const type name;                  \
  }
#define CHASKI_CPU_KERNELS(name) (::chaski::cpu_baseline::name)
#endif
