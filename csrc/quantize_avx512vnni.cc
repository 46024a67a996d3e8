// quantize for AVX512VNNI. The body is quantize.inc.
#include "quantize.h"
#include "cpu_features.h"

#if SB_X86
#include <immintrin.h>

SB_TARGET_BEGIN_AVX512VNNI
namespace sb::avx512vnni {
namespace {
#define SB_W 16
#include "simd.inc"
#include "rounding.inc"
#include "quantize.inc"
}  // namespace
}  // namespace sb::avx512vnni
SB_TARGET_END

namespace sb::avx512vnni {
static const QuantizeKernels kernels{random_run, random_pixels, nearest, stochastic, drawn};
static const Register registered_quantize_nearest{
    "quantize_nearest", Isa::avx512vnni, "quantize_nearest_avx512vnni", &kernels};
static const Register registered_quantize_sr{"quantize_sr", Isa::avx512vnni, "quantize_sr_avx512vnni", &kernels};
}  // namespace sb::avx512vnni
#endif
