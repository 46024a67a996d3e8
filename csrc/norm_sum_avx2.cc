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
static const Register registered{kNormSumOps, Isa::avx2, "", &kernels};
}  // namespace sb::avx2
#endif
