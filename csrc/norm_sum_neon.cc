// norm_sum for NEON, which every AArch64 has: no target region. The body is norm_sum.inc.
#include "norm.h"
#include "cpu_features.h"

#if SB_ARM
#include <arm_neon.h>

namespace sb::neon {
namespace {
#define SB_W 4
#define SB_NEON 1
#include "simd.inc"
#include "simd16.inc"
#include "norm_sum.inc"
}  // namespace

static const Register registered{kNormSumOps, Isa::neon, "", &kernels};
}  // namespace sb::neon
#endif
