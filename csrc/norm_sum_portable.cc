// norm_sum without any ISA extension. The body is norm_sum.inc.
#include "norm.h"
#include "cpu_features.h"

namespace sb::portable {
namespace {
#define SB_W 4
#include "simd.inc"
#include "simd16.inc"
#include "norm_sum.inc"
const Register registered{kNormSumOps, Isa::portable, "", &kernels};
}  // namespace
}  // namespace sb::portable
