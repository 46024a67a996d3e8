// amax for AVX512VNNI. The body is amax.inc.
#include "amax.h"
#include "cpu_features.h"

#if SB_X86
#include <immintrin.h>

SB_TARGET_BEGIN_AVX512VNNI
namespace sb::avx512vnni {
namespace {
#define SB_W 16
#include "simd.inc"
#include "simd16.inc"
#include "amax.inc"
}  // namespace
}  // namespace sb::avx512vnni
SB_TARGET_END

namespace sb::avx512vnni {
static const Register registered{kAmaxOps, Isa::avx512vnni, "", &kernels};
}  // namespace sb::avx512vnni
#endif
