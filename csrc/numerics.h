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

// A float as a tensor of floats keeps it: rounded half to even where that is bfloat16.
inline void put(float* p, float v) { *p = v; }
inline u32 rounded_half(u32 bits) {
    const bool number = (bits & 0x7FFFFFFF) <= 0x7F800000;
    return number ? bits + 0x7FFF + ((bits >> 16) & 1) : kHalfNan;  // its upper half
}
inline void put(Bf16* p, float v) {
    u32 bits;
    std::memcpy(&bits, &v, sizeof bits);
    p->bits = static_cast<u16>(rounded_half(bits) >> 16);
}
// The bits of the largest magnitude of floats that are rounded so: rounding keeps their order.
inline i32 kept_bits(i32 most, bool half) {
    return half ? static_cast<i32>(rounded_half(static_cast<u32>(most)) & 0xFFFF0000) : most;
}

inline float value(float v) { return v; }
inline float value(Bf16 v) {
    const u32 bits = u32{v.bits} << 16;
    float f;
    std::memcpy(&f, &bits, sizeof f);
    return f;
}

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
