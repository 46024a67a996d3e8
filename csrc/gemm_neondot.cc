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
static const Register gemm{"gemm", Isa::neondot, "gemm_s8s8s32_8x8_neondot", &kernels};
static const Register conv{"conv2d", Isa::neondot, "conv2d_s8s8s32_8x8_neondot", &kernels};
static const Register grad_input{"conv2d_grad_input", Isa::neondot, "conv2d_grad_input_s8s8s32_8x8_neondot", &kernels};
static const Register winograd{"conv2d_winograd", Isa::neondot, "conv2d_winograd_s8s8s32_8x8_neondot", &kernels};
static const Register winograd_input_{"conv2d_winograd_grad_input", Isa::neondot,
                                      "conv2d_winograd_grad_input_s8s8s32_8x8_neondot", &kernels};
static const Register grad_weight{"conv2d_grad_weight", Isa::neondot, "conv2d_grad_weight_s8s8s32_8x8_neondot",
                                  &kernels};
}  // namespace sb::neondot
#endif
