// quantize without any ISA extension. The body is quantize.inc.
#include "quantize.h"
#include "cpu_features.h"

namespace sb::portable {
namespace {
#define SB_W 4
#include "simd.inc"
#include "rounding.inc"
#include "quantize.inc"
const QuantizeKernels kernels{random_run, random_pixels, nearest, stochastic, drawn};
const Register registered_quantize_nearest{"quantize_nearest", Isa::portable, "quantize_nearest_portable", &kernels};
const Register registered_quantize_sr{"quantize_sr", Isa::portable, "quantize_sr_portable", &kernels};
}  // namespace
}  // namespace sb::portable
