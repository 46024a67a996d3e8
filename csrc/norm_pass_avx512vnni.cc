// norm_pass for AVX512VNNI. The body is norm_pass.inc.
#include "norm.h"
#include "cpu_features.h"

#if SB_X86
#include <immintrin.h>

SB_TARGET_BEGIN_AVX512VNNI
namespace sb::avx512vnni {
namespace {
#define SB_W 16
#include "simd.inc"
#include "part.inc"
#include "rounding.inc"
#include "norm_step.inc"
#include "norm_pass.inc"
}  // namespace
}  // namespace sb::avx512vnni
SB_TARGET_END

namespace sb::avx512vnni {
static const NormPassKernels kernels{apply_signed, apply_unsigned, grad_apply};
static const Register registered_norm_apply{"norm_apply", Isa::avx512vnni, "norm_apply_avx512vnni", &kernels};
static const Register registered_norm_forward{"norm_forward", Isa::avx512vnni, "norm_forward_avx512vnni", &kernels};
static const Register registered_norm_backward{"norm_backward", Isa::avx512vnni, "norm_backward_avx512vnni", &kernels};
static const Register registered_norm_grad_apply{
    "norm_grad_apply", Isa::avx512vnni, "norm_grad_apply_avx512vnni", &kernels};
}  // namespace sb::avx512vnni
#endif
