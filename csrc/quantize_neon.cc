// quantize for NEON, which every AArch64 has: no target region. The body is quantize.inc.
#include "quantize.h"
#include "cpu_features.h"

#if SB_ARM
#include <arm_neon.h>

namespace sb::neon {
namespace {
#define SB_W 4
#define SB_NEON 1
#include "simd.inc"
#include "rounding.inc"
#include "quantize.inc"
}  // namespace

static const Register registered{kQuantizeOps, Isa::neon, "", &kernels};
}  // namespace sb::neon
#endif
