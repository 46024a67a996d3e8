// The chain's passes without any ISA extension. The body is chain.inc.
#include "chain.h"
#include "cpu_features.h"

namespace sb::portable {
namespace {
#define SB_W 4
#include "simd.inc"
#include "simd16.inc"
#include "part.inc"
#include "rounding.inc"
#include "norm_step.inc"
#include "chain.inc"
const ChainKernels kernels{
    norm_relu, norm_relu_codes, relu_grad, relu_grad_quantize, norm_grad_sums, norm_grad_codes, norm_grad_floats,
    token_codes, relu_grad_add};
const Register registered_norm_relu{"norm_relu", Isa::portable, "norm_relu_portable", &kernels};
const Register registered_norm_relu_codes{
    "norm_relu_codes", Isa::portable, "norm_relu_codes_portable", &kernels};
const Register registered_norm_relu_tokens{
    "norm_relu_tokens", Isa::portable, "norm_relu_tokens_portable", &kernels};
const Register registered_relu_grad{"relu_grad", Isa::portable, "relu_grad_portable", &kernels};
const Register registered_relu_grad_quantize{
    "relu_grad_quantize", Isa::portable, "relu_grad_quantize_portable", &kernels};
const Register registered_norm_grad_sums{"norm_grad_sums", Isa::portable, "norm_grad_sums_portable", &kernels};
const Register registered_chain_norm{"chain_norm", Isa::portable, "chain_norm_portable", &kernels};
const Register registered_chain_norm_grad{
    "chain_norm_grad", Isa::portable, "chain_norm_grad_portable", &kernels};
const Register registered_norm_grad_codes{
    "norm_grad_codes", Isa::portable, "norm_grad_codes_portable", &kernels};
const Register registered_norm_grad_amax{
    "norm_grad_amax", Isa::portable, "norm_grad_amax_portable", &kernels};
const Register registered_norm_grad_tokens{
    "norm_grad_tokens", Isa::portable, "norm_grad_tokens_portable", &kernels};
const Register registered_quantize_tokens{
    "quantize_tokens", Isa::portable, "quantize_tokens_portable", &kernels};
}  // namespace
}  // namespace sb::portable
