// norm_sum without any ISA extension. The body is norm_sum.inc.
#include "norm.h"
#include "cpu_features.h"

namespace sb::portable {
namespace {
#define SB_W 4
#include "simd.inc"
#include "simd16.inc"
#include "norm_sum.inc"
const NormSumKernels kernels{
    moments, above, squares, grad, row_moments, row_above, row_squares, grad_row};
const Register registered_norm_stats{"norm_stats", Isa::portable, "norm_stats_portable", &kernels};
const Register registered_norm_stats_uncentred{
    "norm_stats_uncentred", Isa::portable, "norm_stats_uncentred_portable", &kernels};
const Register registered_norm_grad_stats{"norm_grad_stats", Isa::portable, "norm_grad_stats_portable", &kernels};
}  // namespace
}  // namespace sb::portable
