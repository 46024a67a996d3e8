// norm_sum for AVX2. The body is norm_sum.inc.
#include "norm.h"
#include "cpu_features.h"

#if SB_X86
#include <immintrin.h>

SB_TARGET_BEGIN_AVX2
namespace sb::avx2 {
namespace {
#define SB_W 8
#include "simd.inc"
#include "simd16.inc"
#include "norm_sum.inc"
}  // namespace
}  // namespace sb::avx2
SB_TARGET_END

namespace sb::avx2 {
static const NormSumKernels kernels{
    moments, above, squares, grad, row_moments, row_above, row_squares, grad_row};
static const Register registered_norm_stats{"norm_stats", Isa::avx2, "norm_stats_avx2", &kernels};
static const Register registered_norm_stats_uncentred{
    "norm_stats_uncentred", Isa::avx2, "norm_stats_uncentred_avx2", &kernels};
static const Register registered_norm_grad_stats{"norm_grad_stats", Isa::avx2, "norm_grad_stats_avx2", &kernels};
}  // namespace sb::avx2
#endif
