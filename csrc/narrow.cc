// sb_narrow_codes: codes / 2^drop, half to even, clamped. One byte in, one byte out: the loop below is what a compiler
// turns into vectors of 16-bit integers on any machine, and memory is the limit; so there is one kernel for all ISAs.
#include <algorithm>

#include "cpu_features.h"
#include "parallel.h"

namespace sb {
namespace {

constexpr i64 kBlock = 1 << 16;  // codes in a task
constexpr const char* kOps[] = {"narrow_codes"};
const Register registered{kOps, Isa::portable, "", nullptr};

template <class Code>
void narrow(const Code* codes, i64 n, int drop, i16 low, i16 high, Code* out) {
    const i16 below_half = static_cast<i16>((1 << (drop - 1)) - 1);
    for (i64 i = 0; i < n; ++i) {
        const i16 c = codes[i];
        const i16 odd = static_cast<i16>((c >> drop) & 1);
        const i16 v = static_cast<i16>((c + below_half + odd) >> drop);
        out[i] = static_cast<Code>(std::min(std::max(v, low), high));
    }
}

}  // namespace
}  // namespace sb

SB_EXPORT const char* sb_narrow_codes(
    const void* codes, sb::i64 n, int drop, int is_signed, int low, int high, void* out, int threads) {
    using namespace sb;
    if (drop < 1 || drop > 7) return nullptr;
    parallel(useful_threads(threads, n, kBlock), ceil_div(n, kBlock), [&](i64 task, int) {
        const i64 begin = task * kBlock, count = std::min(kBlock, n - begin);
        const i16 lo = static_cast<i16>(low), hi = static_cast<i16>(high);
        if (is_signed)
            narrow(static_cast<const i8*>(codes) + begin, count, drop, lo, hi, static_cast<i8*>(out) + begin);
        else
            narrow(static_cast<const u8*>(codes) + begin, count, drop, lo, hi, static_cast<u8*>(out) + begin);
    });
    return "narrow_codes_portable";
}
