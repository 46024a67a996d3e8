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
static const Register gemm{"gemm", Isa::avxvnni, "gemm_u8s8s32_6x16_avxvnni", &kernels};
static const Register conv{"conv2d", Isa::avxvnni, "conv2d_u8s8s32_6x16_avxvnni", &kernels};
static const Register grad_input{"conv2d_grad_input", Isa::avxvnni, "conv2d_grad_input_u8s8s32_6x16_avxvnni", &kernels};
static const Register winograd{"conv2d_winograd", Isa::avxvnni, "conv2d_winograd_u8s8s32_6x16_avxvnni", &kernels};
static const Register winograd_input_{"conv2d_winograd_grad_input", Isa::avxvnni,
                                      "conv2d_winograd_grad_input_u8s8s32_6x16_avxvnni", &kernels};
static const Register grad_weight{"conv2d_grad_weight", Isa::avxvnni, "conv2d_grad_weight_u8s8s32_6x16_avxvnni",
                                  &kernels};
}  // namespace sb::avxvnni
#endif
