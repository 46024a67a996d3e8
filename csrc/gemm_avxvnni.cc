// Integer products for AVX-VNNI: u8 x s8 words, vpdpbusd on 256 bits. Everything else is AVX2's.
// The bodies: gemm_*.inc.
#include "cpu_features.h"
#include "gemm_kernels.h"

#if SB_AVXVNNI
#include <immintrin.h>

SB_TARGET_BEGIN_AVXVNNI
namespace sb::avxvnni {
namespace {
#define SB_W 8
#define SB_PER_WORD 4
#define SB_MR1 8
#define SB_MR2 6
#include "simd.inc"
#include "part.inc"
#include "gemm_encode.inc"
#include "gemm_kernels.inc"
}  // namespace
}  // namespace sb::avxvnni
SB_TARGET_END

namespace sb::avxvnni {
static constexpr ProductKernels kernels = product_kernels();
static const Register products{kProductOps, Isa::avxvnni, "u8s8s32_6x16", &kernels};
static const Register winograd{kWinogradOps, Isa::avxvnni, "u8s8s32_6x16", &kernels};
}  // namespace sb::avxvnni
#endif
