// quantize without any ISA extension. The body is quantize.inc.
#include "quantize.h"
#include "cpu_features.h"

namespace sb::portable {
namespace {
#define SB_W 4
#include "simd.inc"
#include "rounding.inc"
#include "quantize.inc"
const Register registered{kQuantizeOps, Isa::portable, "", &kernels};
}  // namespace
}  // namespace sb::portable
