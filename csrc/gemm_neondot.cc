// Integer products for NEON with dotprod (ARMv8.2): s8 x s8 words, sdot. Everything else is NEON's.
// The bodies: gemm_*.inc.
#include "cpu_features.h"
#include "gemm_kernels.h"

#if SB_NEONDOT
#include <arm_neon.h>

SB_TARGET_BEGIN_NEONDOT
namespace sb::neondot {
namespace {
#define SB_W 4
#define SB_NEON 1
#define SB_PER_WORD 4
#define SB_MR1 16
#define SB_MR2 8
#include "simd.inc"
#include "part.inc"
#include "gemm_encode.inc"
#include "gemm_kernels.inc"
}  // namespace
}  // namespace sb::neondot
SB_TARGET_END

namespace sb::neondot {
static constexpr ProductKernels kernels = product_kernels();
static const Register products{kProductOps, Isa::neondot, "s8s8s32_8x8", &kernels};
static const Register winograd{kWinogradOps, Isa::neondot, "s8s8s32_8x8", &kernels};
}  // namespace sb::neondot
#endif
