// Integer products for AVX-512 VNNI: u8 x s8 words, vpdpbusd. The bodies: gemm_*.inc.
#include "cpu_features.h"
#include "gemm_kernels.h"

#if SB_X86
// GCC 12 takes the deliberately undefined operand of its own intrinsics for a mistake of ours.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

SB_TARGET_BEGIN_AVX512VNNI
namespace sb::avx512vnni {
namespace {
#define SB_W 16
#define SB_PER_WORD 4
#define SB_MR1 16
#define SB_MR2 12
#include "simd.inc"
#include "part.inc"
#include "gemm_encode.inc"
#include "gemm_kernels.inc"
}  // namespace
}  // namespace sb::avx512vnni
SB_TARGET_END

namespace sb::avx512vnni {
static constexpr ProductKernels kernels = product_kernels();
static const Register products{kProductOps, Isa::avx512vnni, "u8s8s32_12x32", &kernels};
static const Register winograd{kWinogradOps, Isa::avx512vnni, "u8s8s32_12x32", &kernels};
static const Register planes{kPlaneOps, Isa::avx512vnni, "s32", &kernels};
}  // namespace sb::avx512vnni
#endif
