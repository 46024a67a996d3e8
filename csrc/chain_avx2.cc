// The chain's passes for AVX2. The body is chain.inc.
#include "chain.h"
#include "cpu_features.h"

#if SB_X86
#include <immintrin.h>

SB_TARGET_BEGIN_AVX2
namespace sb::avx2 {
namespace {
#define SB_W 8
#include "simd.inc"
#include "simd16.inc"
#include "part.inc"
#include "rounding.inc"
#include "norm_step.inc"
#include "chain.inc"
}  // namespace
}  // namespace sb::avx2
SB_TARGET_END

namespace sb::avx2 {
static const ChainKernels kernels{
    norm_relu, norm_relu_codes, relu_grad, relu_grad_quantize, norm_grad_sums, norm_grad_codes, norm_grad_floats,
    token_codes, relu_grad_add};
static const Register registered_norm_relu{"norm_relu", Isa::avx2, "norm_relu_avx2", &kernels};
static const Register registered_norm_relu_codes{"norm_relu_codes", Isa::avx2, "norm_relu_codes_avx2", &kernels};
static const Register registered_norm_relu_tokens{
    "norm_relu_tokens", Isa::avx2, "norm_relu_tokens_avx2", &kernels};
static const Register registered_relu_grad{"relu_grad", Isa::avx2, "relu_grad_avx2", &kernels};
static const Register registered_relu_grad_quantize{
    "relu_grad_quantize", Isa::avx2, "relu_grad_quantize_avx2", &kernels};
static const Register registered_norm_grad_sums{"norm_grad_sums", Isa::avx2, "norm_grad_sums_avx2", &kernels};
static const Register registered_chain_norm{"chain_norm", Isa::avx2, "chain_norm_avx2", &kernels};
static const Register registered_chain_norm_grad{
    "chain_norm_grad", Isa::avx2, "chain_norm_grad_avx2", &kernels};
static const Register registered_norm_grad_codes{"norm_grad_codes", Isa::avx2, "norm_grad_codes_avx2", &kernels};
static const Register registered_norm_grad_amax{"norm_grad_amax", Isa::avx2, "norm_grad_amax_avx2", &kernels};
static const Register registered_norm_grad_tokens{"norm_grad_tokens", Isa::avx2, "norm_grad_tokens_avx2", &kernels};
static const Register registered_quantize_tokens{"quantize_tokens", Isa::avx2, "quantize_tokens_avx2", &kernels};
}  // namespace sb::avx2
#endif
