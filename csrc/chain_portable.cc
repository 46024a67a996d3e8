// The chain's passes without any ISA extension. The body is chain.inc.
#include "chain.h"
#include "cpu_features.h"

namespace sb::portable {
namespace {
#define SB_W 4
#include "simd.inc"
#include "simd16.inc"
#include "part.inc"
#include "rounding.inc"
#include "norm_step.inc"
#include "chain.inc"
const Register registered{kChainOps, Isa::portable, "", &kernels};
}  // namespace
}  // namespace sb::portable
