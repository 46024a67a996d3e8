// Scales of a quantized norm's operands, for the calls that do a whole norm (norm_layer.cc, chain_norm.cc).
#pragma once

#include <vector>

#include "exports.h"

namespace sb {

inline float qmax(int bits) { return static_cast<float>((1 << (bits - 1)) - 1); }

inline std::vector<float> steps(const float* r, i64 n, int bits) {
    std::vector<float> s(r, r + n);
    for (float& v : s) v /= qmax(bits);
    return s;
}

// codes and scale of gamma by its own maximum; without gamma the code 1 with scale 1
inline void quantize_gamma(const float* gamma, i64 n, int bits, i8* codes, float* scale) {
    codes[0] = 1, *scale = 1.0f;
    if (!gamma) return;
    float r;
    sb_amax(gamma, false, 1, 1, n, &r, 1);
    const int top = (1 << (bits - 1)) - 1;
    sb_quantize(gamma, false, n, &r, 1, n, nullptr, 1, 1, nullptr, 1, n, 1, -top, top, codes, 1);
    *scale = r / qmax(bits);
}

}  // namespace sb
