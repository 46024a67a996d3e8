// norm_pass without any ISA extension. The body is norm_pass.inc.
#include "norm.h"
#include "cpu_features.h"

namespace sb::portable {
namespace {
#define SB_W 4
#include "simd.inc"
#include "part.inc"
#include "rounding.inc"
#include "norm_step.inc"
#include "norm_pass.inc"
const NormPassKernels kernels{apply_signed, apply_unsigned, grad_apply};
const Register registered_norm_apply{"norm_apply", Isa::portable, "norm_apply_portable", &kernels};
const Register registered_norm_forward{"norm_forward", Isa::portable, "norm_forward_portable", &kernels};
const Register registered_norm_backward{"norm_backward", Isa::portable, "norm_backward_portable", &kernels};
const Register registered_norm_grad_apply{"norm_grad_apply", Isa::portable, "norm_grad_apply_portable", &kernels};
}  // namespace
}  // namespace sb::portable
