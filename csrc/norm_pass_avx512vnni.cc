// norm_pass for AVX512VNNI. The body is norm_pass.inc.
#include "norm.h"
#include "cpu_features.h"

#if SB_X86
#include <immintrin.h>

SB_TARGET_BEGIN_AVX512VNNI
namespace sb::avx512vnni {
namespace {
#define SB_W 16
#include "simd.inc"
#include "part.inc"
#include "rounding.inc"
#include "norm_step.inc"
#include "norm_pass.inc"
}  // namespace
}  // namespace sb::avx512vnni
SB_TARGET_END

namespace sb::avx512vnni {
static const Register registered{kNormPassOps, Isa::avx512vnni, "", &kernels};
}  // namespace sb::avx512vnni
#endif
