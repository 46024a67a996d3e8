// norm_pass for NEON, which every AArch64 has: no target region. The body is norm_pass.inc.
#include "norm.h"
#include "cpu_features.h"

#if SB_ARM
#include <arm_neon.h>

namespace sb::neon {
namespace {
#define SB_W 4
#define SB_NEON 1
#include "simd.inc"
#include "part.inc"
#include "rounding.inc"
#include "norm_step.inc"
#include "norm_pass.inc"
}  // namespace

static const NormPassKernels kernels{apply_signed, apply_unsigned, grad_apply};
static const Register registered_norm_apply{"norm_apply", Isa::neon, "norm_apply_neon", &kernels};
static const Register registered_norm_forward{"norm_forward", Isa::neon, "norm_forward_neon", &kernels};
static const Register registered_norm_backward{"norm_backward", Isa::neon, "norm_backward_neon", &kernels};
static const Register registered_norm_grad_apply{"norm_grad_apply", Isa::neon, "norm_grad_apply_neon", &kernels};
}  // namespace sb::neon
#endif
