// amax without any ISA extension. The body is amax.inc.
#include "amax.h"
#include "cpu_features.h"

namespace sb::portable {
namespace {
#define SB_W 4
#include "simd.inc"
#include "simd16.inc"
#include "amax.inc"
const Register registered{kAmaxOps, Isa::portable, "", &kernels};
}  // namespace
}  // namespace sb::portable
