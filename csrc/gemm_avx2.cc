// Integer products for AVX2: int16 words, vpmaddwd, which never saturates; and for few bits u8 x s8, vpmaddubsw, where
// it cannot. The bodies: gemm_*.inc.
#include "cpu_features.h"
#include "gemm_kernels.h"

#if SB_X86
#include <immintrin.h>

SB_TARGET_BEGIN_AVX2
namespace sb::avx2 {
namespace {
#define SB_W 8
#define SB_PER_WORD 2
#define SB_MR1 8
#define SB_MR2 6
#include "simd.inc"
#include "part.inc"
#include "gemm_encode.inc"
#include "gemm_kernels.inc"
}  // namespace
}  // namespace sb::avx2

namespace sb::avx2::few_bits {
namespace {
#undef SB_PER_WORD
#define SB_PER_WORD 4
#define SB_FEW_BITS 1
#include "simd.inc"
#include "part.inc"
#include "gemm_encode.inc"
#include "gemm_kernels.inc"
}  // namespace
}  // namespace sb::avx2::few_bits
SB_TARGET_END

namespace sb::avx2 {
static constexpr ProductKernels kernels = product_kernels();
static const Register products{kProductOps, Isa::avx2, "s16s16s32_6x16", &kernels};
static const Register planes{kPlaneOps, Isa::avx2, "s32", &kernels};
}  // namespace sb::avx2

namespace sb::avx2::few_bits {
static constexpr ProductKernels kernels = product_kernels();
static const Register products{kFewBitsOps, Isa::avx2, "u8s8s16_6x16", &kernels};
}  // namespace sb::avx2::few_bits
#endif
