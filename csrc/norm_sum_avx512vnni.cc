// norm_sum for AVX512VNNI. The body is norm_sum.inc.
#include "norm.h"
#include "cpu_features.h"

#if SB_X86
#include <immintrin.h>

SB_TARGET_BEGIN_AVX512VNNI
namespace sb::avx512vnni {
namespace {
#define SB_W 16
#include "simd.inc"
#include "simd16.inc"
#include "norm_sum.inc"
}  // namespace
}  // namespace sb::avx512vnni
SB_TARGET_END

namespace sb::avx512vnni {
static const NormSumKernels kernels{
    moments, above, squares, grad, row_moments, row_above, row_squares, grad_row};
static const Register registered_norm_stats{"norm_stats", Isa::avx512vnni, "norm_stats_avx512vnni", &kernels};
static const Register registered_norm_stats_uncentred{
    "norm_stats_uncentred", Isa::avx512vnni, "norm_stats_uncentred_avx512vnni", &kernels};
static const Register registered_norm_grad_stats{
    "norm_grad_stats", Isa::avx512vnni, "norm_grad_stats_avx512vnni", &kernels};
}  // namespace sb::avx512vnni
#endif
