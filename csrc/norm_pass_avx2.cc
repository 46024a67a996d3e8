// norm_pass for AVX2. The body is norm_pass.inc.
#include "norm.h"
#include "cpu_features.h"

#if SB_X86
#include <immintrin.h>

SB_TARGET_BEGIN_AVX2
namespace sb::avx2 {
namespace {
#define SB_W 8
#include "simd.inc"
#include "part.inc"
#include "rounding.inc"
#include "norm_step.inc"
#include "norm_pass.inc"
}  // namespace
}  // namespace sb::avx2
SB_TARGET_END

namespace sb::avx2 {
static const Register registered{kNormPassOps, Isa::avx2, "", &kernels};
}  // namespace sb::avx2
#endif
