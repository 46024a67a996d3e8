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
const Register registered{kNormPassOps, Isa::portable, "", &kernels};
}  // namespace
}  // namespace sb::portable
