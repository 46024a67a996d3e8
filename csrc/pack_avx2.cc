// pack and unpack with BMI2, which comes with AVX2: one instruction gathers or scatters the bits of 8 codes.
#include "cpu_features.h"
#include "pack.h"

#if SB_X86
#include <immintrin.h>

SB_TARGET_BEGIN_AVX2
namespace sb::avx2 {
namespace {

template <int kBits>
SB_INLINE u64 squeeze(u64 word) { return _pext_u64(word, in_each_byte(low_bits(kBits))); }

template <int kBits>
SB_INLINE u64 spread(u64 dense) { return _pdep_u64(dense, in_each_byte(low_bits(kBits))); }

#include "pack.inc"
}  // namespace
}  // namespace sb::avx2
SB_TARGET_END

namespace sb::avx2 {
static const PackKernels kernels{pack, unpack};
static const Register registered{kPackOps, Isa::avx2, "", &kernels};
}  // namespace sb::avx2
#endif
