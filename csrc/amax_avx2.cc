// amax for AVX2. The body is amax.inc.
#include "amax.h"
#include "cpu_features.h"

#if SB_X86
#include <immintrin.h>

SB_TARGET_BEGIN_AVX2
namespace sb::avx2 {
namespace {
#define SB_W 8
#include "simd.inc"
#include "simd16.inc"
#include "amax.inc"
}  // namespace
}  // namespace sb::avx2
SB_TARGET_END

namespace sb::avx2 {
static const Register registered{kAmaxOps, Isa::avx2, "", &kernels};
}  // namespace sb::avx2
#endif
