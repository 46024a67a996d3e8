// Integer products without any ISA extension (SSE2 is part of every x86-64). The bodies: gemm_*.inc.
#include "cpu_features.h"
#include "gemm_kernels.h"

#if SB_X86
#include <emmintrin.h>
#endif

namespace sb::portable {
namespace {
#define SB_W 4
#define SB_PER_WORD 2
#define SB_MR1 4
#define SB_MR2 4
#include "simd.inc"
#include "part.inc"
#include "gemm_encode.inc"
#include "gemm_kernels.inc"
}  // namespace

static constexpr ProductKernels kernels = product_kernels();
static const Register products{kProductOps, Isa::portable, "s16s16s32_4x8", &kernels};
static const Register planes{kPlaneOps, Isa::portable, "s32", &kernels};
}  // namespace sb::portable
