// The panel product of gemm_bf16.h by AVX512-BF16's dot products of pairs, on AMD's processors, where they run at twice
// the rate of fp32 (on Intel's converting to fp32 is faster).
#pragma once

#include "gemm_bf16.h"

namespace blip_fast {

// Whether the processor is one of those.
bool has_fast_bf16_dots();

void multiply_panel_by_dots(Operand<BFloat16> a, int64_t rows, int64_t depth, const BFloat16* panel, float* c,
                            int64_t c_stride, bool accumulate);

}  // namespace blip_fast
