#pragma once

#include "kernels/moc/moc.h"
#include "kernels/moc/moc_cpu.h"

namespace chaski {

// What the ops on MocShape and MocKept have in common: checks, as in kernels/device/dispatch.h, and
// the form that the CPU's inner loops take.
void require_moc_shape(const char* op, const MocShape& shape);
void require_moc_kept(const char* op, const MocShape& shape, const MocKept& kept,
                      std::int64_t rows);
MocProblem moc_problem_of(const MocShape& shape);
MocRows moc_rows_of(const MocKept& kept);

}  // namespace chaski
