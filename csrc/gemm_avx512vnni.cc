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
static const Register gemm{"gemm", Isa::avx512vnni, "gemm_u8s8s32_12x32_avx512vnni", &kernels};
static const Register conv{"conv2d", Isa::avx512vnni, "conv2d_u8s8s32_12x32_avx512vnni", &kernels};
static const Register grad_input{"conv2d_grad_input", Isa::avx512vnni, "conv2d_grad_input_u8s8s32_12x32_avx512vnni",
                                 &kernels};
static const Register winograd{"conv2d_winograd", Isa::avx512vnni, "conv2d_winograd_u8s8s32_12x32_avx512vnni", &kernels};
static const Register winograd_input_{"conv2d_winograd_grad_input", Isa::avx512vnni,
                                      "conv2d_winograd_grad_input_u8s8s32_12x32_avx512vnni", &kernels};
static const Register grad_weight{"conv2d_grad_weight", Isa::avx512vnni, "conv2d_grad_weight_u8s8s32_12x32_avx512vnni",
                                  &kernels};
static const Register planes{"conv2d_planes", Isa::avx512vnni, "conv2d_planes_s32_avx512vnni", &kernels};
static const Register planes_input{"conv2d_planes_grad_input", Isa::avx512vnni,
                                   "conv2d_planes_grad_input_s32_avx512vnni", &kernels};
static const Register planes_weight{"conv2d_planes_grad_weight", Isa::avx512vnni,
                                    "conv2d_planes_grad_weight_s32_avx512vnni", &kernels};
}  // namespace sb::avx512vnni
#endif
