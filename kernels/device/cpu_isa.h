#pragma once

namespace chaski {

// Instruction sets for which the CPU kernels are compiled. The best one that the processor has is
// chosen once, at the first use; the environment variable CHASKI_ISA (baseline, avx2, avx512) can
// lower it.
enum class CpuIsa { baseline, avx2, avx512 };
CpuIsa cpu_isa();
const char* name_of(CpuIsa isa);

}  // namespace chaski
