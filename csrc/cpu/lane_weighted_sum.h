// The clip-weighted sum of all rows' gradients, from what the fused backward left in the workspace.
#pragma once

#include "fused_program.h"

namespace dpcgan::cpu {

// Adds sum_n factor[n] G_n to `out`, in the order of the program's parameters; rows of factor 0 are not read.
// factor: program.rows values; out: program.parameters values.
void add_weighted_grads(const FusedProgram& program, const double* factor, const float* workspace, double* out);

}  // namespace dpcgan::cpu
