// norm_sum for NEON, which every AArch64 has: no target region. The body is norm_sum.inc.
#include "norm.h"
#include "cpu_features.h"

#if SB_ARM
#include <arm_neon.h>

namespace sb::neon {
namespace {
#define SB_W 4
#define SB_NEON 1
#include "simd.inc"
#include "simd16.inc"
#include "norm_sum.inc"
}  // namespace

static const NormSumKernels kernels{
    moments, above, squares, grad, row_moments, row_above, row_squares, grad_row};
static const Register registered_norm_stats{"norm_stats", Isa::neon, "norm_stats_neon", &kernels};
static const Register registered_norm_stats_uncentred{
    "norm_stats_uncentred", Isa::neon, "norm_stats_uncentred_neon", &kernels};
static const Register registered_norm_grad_stats{"norm_grad_stats", Isa::neon, "norm_grad_stats_neon", &kernels};
}  // namespace sb::neon
#endif
