// amax for NEON, which every AArch64 has: no target region. The body is amax.inc.
#include "amax.h"
#include "cpu_features.h"

#if SB_ARM
#include <arm_neon.h>

namespace sb::neon {
namespace {
#define SB_W 4
#define SB_NEON 1
#include "simd.inc"
#include "simd16.inc"
#include "amax.inc"
}  // namespace

static const Register registered{kAmaxOps, Isa::neon, "", &kernels};
}  // namespace sb::neon
#endif
