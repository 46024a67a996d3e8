// The scalar functions of numerics.py that drivers compute once for a channel. NORMATIVE text: numerics.py.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "subbyte.h"

namespace sb {

constexpr int kFractionBits = 16;
constexpr float kOne = 1 << kFractionBits;  // a code's step in fixed point
constexpr float kRangeFloor = 0x1p-80f;     // RANGE_FLOOR

inline float range_from_bits(i32 bits) {
    float r;
    std::memcpy(&r, &bits, sizeof r);
    if (!std::isfinite(r)) return std::numeric_limits<float>::quiet_NaN();
    return r < kRangeFloor ? 0.0f : r;
}

inline float clipped(float r, float clip) { return r > 0 ? std::max(r * clip, kRangeFloor) : r; }

// top: Q 2^16
inline float inverse_step(float r, float top) { return std::isfinite(r) && r > 0 ? top / r : 0.0f; }

inline float power_of_two(u8 exponent) {
    const u32 bits = (exponent + 127u) << 23;
    float f;
    std::memcpy(&f, &bits, sizeof f);
    return f;
}

}  // namespace sb
