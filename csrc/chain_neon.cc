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

static const Register registered{kChainOps, Isa::neon, "", &kernels};
}  // namespace sb::neon
#endif
