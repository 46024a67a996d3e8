// Integer products without any ISA extension (SSE2 is part of every x86-64). The bodies: gemm_*.inc.
#include "cpu_features.h"
#include "gemm_kernels.h"

#if SB_X86
#include <emmintrin.h>
#endif

namespace sb::portable {
namespace {
#define SB_W 4
#define SB_PER_WORD 2
#define SB_MR1 4
#define SB_MR2 4
#include "simd.inc"
#include "part.inc"
#include "gemm_encode.inc"
#include "gemm_kernels.inc"
}  // namespace

static constexpr ProductKernels kernels = product_kernels();
static const Register gemm{"gemm", Isa::portable, "gemm_s16s16s32_4x8_portable", &kernels};
static const Register conv{"conv2d", Isa::portable, "conv2d_s16s16s32_4x8_portable", &kernels};
static const Register grad_input{"conv2d_grad_input", Isa::portable, "conv2d_grad_input_s16s16s32_4x8_portable",
                                 &kernels};
static const Register grad_weight{"conv2d_grad_weight", Isa::portable, "conv2d_grad_weight_s16s16s32_4x8_portable",
                                  &kernels};
static const Register planes{"conv2d_planes", Isa::portable, "conv2d_planes_s32_portable", &kernels};
static const Register planes_input{"conv2d_planes_grad_input", Isa::portable, "conv2d_planes_grad_input_s32_portable",
                                   &kernels};
static const Register planes_weight{"conv2d_planes_grad_weight", Isa::portable,
                                    "conv2d_planes_grad_weight_s32_portable", &kernels};
}  // namespace sb::portable
