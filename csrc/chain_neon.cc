// The chain's passes for NEON, which every AArch64 has: no target region. The body is chain.inc.
#include "chain.h"
#include "cpu_features.h"

#if SB_ARM
#include <arm_neon.h>

namespace sb::neon {
namespace {
#define SB_W 4
#define SB_NEON 1
#include "simd.inc"
#include "simd16.inc"
#include "part.inc"
#include "rounding.inc"
#include "norm_step.inc"
#include "chain.inc"
}  // namespace

static const ChainKernels kernels{
    norm_relu, norm_relu_codes, relu_grad, relu_grad_quantize, norm_grad_sums, norm_grad_codes, norm_grad_floats,
    token_codes, relu_grad_add};
static const Register registered_norm_relu{"norm_relu", Isa::neon, "norm_relu_neon", &kernels};
static const Register registered_norm_relu_codes{"norm_relu_codes", Isa::neon, "norm_relu_codes_neon", &kernels};
static const Register registered_norm_relu_tokens{
    "norm_relu_tokens", Isa::neon, "norm_relu_tokens_neon", &kernels};
static const Register registered_relu_grad{"relu_grad", Isa::neon, "relu_grad_neon", &kernels};
static const Register registered_relu_grad_quantize{
    "relu_grad_quantize", Isa::neon, "relu_grad_quantize_neon", &kernels};
static const Register registered_norm_grad_sums{"norm_grad_sums", Isa::neon, "norm_grad_sums_neon", &kernels};
static const Register registered_chain_norm{"chain_norm", Isa::neon, "chain_norm_neon", &kernels};
static const Register registered_chain_norm_grad{
    "chain_norm_grad", Isa::neon, "chain_norm_grad_neon", &kernels};
static const Register registered_norm_grad_codes{"norm_grad_codes", Isa::neon, "norm_grad_codes_neon", &kernels};
static const Register registered_norm_grad_amax{"norm_grad_amax", Isa::neon, "norm_grad_amax_neon", &kernels};
static const Register registered_norm_grad_tokens{"norm_grad_tokens", Isa::neon, "norm_grad_tokens_neon", &kernels};
static const Register registered_quantize_tokens{"quantize_tokens", Isa::neon, "quantize_tokens_neon", &kernels};
}  // namespace sb::neon
#endif
