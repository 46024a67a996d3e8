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
static const Register gemm{"gemm", Isa::neon, "gemm_s16s16s32_8x8_neon", &kernels};
static const Register conv{"conv2d", Isa::neon, "conv2d_s16s16s32_8x8_neon", &kernels};
static const Register grad_input{"conv2d_grad_input", Isa::neon, "conv2d_grad_input_s16s16s32_8x8_neon", &kernels};
static const Register grad_weight{"conv2d_grad_weight", Isa::neon, "conv2d_grad_weight_s16s16s32_8x8_neon", &kernels};
static const Register planes{"conv2d_planes", Isa::neon, "conv2d_planes_s32_neon", &kernels};
static const Register planes_input{"conv2d_planes_grad_input", Isa::neon, "conv2d_planes_grad_input_s32_neon",
                                   &kernels};
static const Register planes_weight{"conv2d_planes_grad_weight", Isa::neon, "conv2d_planes_grad_weight_s32_neon",
                                    &kernels};
}  // namespace sb::neon
#endif
