// pack and unpack without any ISA extension: neighbours are joined three times, 8 fields to 4, 2 and 1.
#include "cpu_features.h"
#include "pack.h"

namespace sb::portable {
namespace {

// Ones in the fields of `bits` at the foot of every second slot.
constexpr u64 even_fields(int bits, int slot) {
    u64 mask = 0;
    for (int at = 0; at < 64; at += 2 * slot) mask |= low_bits(bits) << at;
    return mask;
}

// Fields of kBits in slots of kSlot bits: join each second one to the one below it.
template <int kBits, int kSlot>
SB_INLINE u64 join(u64 v) {
    constexpr u64 even = even_fields(kBits, kSlot);
    return (v & even) | ((v >> (kSlot - kBits)) & (even << kBits));
}

template <int kBits>
SB_INLINE u64 squeeze(u64 word) {
    return join<4 * kBits, 32>(join<2 * kBits, 16>(join<kBits, 8>(word)));
}

// The inverse of join.
template <int kBits, int kSlot>
SB_INLINE u64 part(u64 v) {
    constexpr u64 even = even_fields(kBits, kSlot);
    return (v & even) | ((v & (even << kBits)) << (kSlot - kBits));
}

template <int kBits>
SB_INLINE u64 spread(u64 dense) {
    return part<kBits, 8>(part<2 * kBits, 16>(part<4 * kBits, 32>(dense & low_bits(8 * kBits))));
}

#include "pack.inc"
const PackKernels kernels{pack, unpack};
const Register registered{kPackOps, Isa::portable, "", &kernels};

}  // namespace
}  // namespace sb::portable
