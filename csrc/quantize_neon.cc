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

static const QuantizeKernels kernels{random_run, random_pixels, nearest, stochastic, drawn};
static const Register registered_quantize_nearest{"quantize_nearest", Isa::neon, "quantize_nearest_neon", &kernels};
static const Register registered_quantize_sr{"quantize_sr", Isa::neon, "quantize_sr_neon", &kernels};
}  // namespace sb::neon
#endif
