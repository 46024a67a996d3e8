// The range of a tensor: max |x| as the integer of its float bits (numerics.range_bits). What an ISA file provides.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "subbyte.h"

namespace sb {

// numerics.range_from_bits
inline float range_from_bits(i32 bits) {
    const float floor = 0x1p-80f;  // numerics.RANGE_FLOOR
    float r;
    std::memcpy(&r, &bits, sizeof r);
    if (!std::isfinite(r)) return std::numeric_limits<float>::quiet_NaN();
    return r < floor ? 0.0f : r;
}

struct AmaxKernels {
    // *m = max(*m, bits of |x[0..n)|)
    void (*run)(const float* x, i64 n, i32* m);
    // m[c] = max(m[c], bits of |x[r * columns + c]|) over all rows
    void (*columns)(const float* x, i64 rows, i64 columns, i32* m);
};

}  // namespace sb
