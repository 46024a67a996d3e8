// Integer products for NEON, which every AArch64 has: int16 words. For CPUs without dotprod.
// The bodies: gemm_*.inc.
#include "cpu_features.h"
#include "gemm_kernels.h"

#if SB_ARM
#include <arm_neon.h>

namespace sb::neon {
namespace {
#define SB_W 4
#define SB_NEON 1
#define SB_PER_WORD 2
#define SB_MR1 16
#define SB_MR2 8
#include "simd.inc"
#include "part.inc"
#include "gemm_encode.inc"
#include "gemm_kernels.inc"
}  // namespace

static constexpr ProductKernels kernels = product_kernels();
static const Register products{kProductOps, Isa::neon, "s16s16s32_8x8", &kernels};
static const Register planes{kPlaneOps, Isa::neon, "s32", &kernels};
}  // namespace sb::neon
#endif
