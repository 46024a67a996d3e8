// Operands of the chain's passes: one value, or one for each channel, brought to the slots of strips.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "chain.h"
#include "numerics.h"
#include "strips.h"

namespace sb {

template <class T>
struct Values {
    const T* p;
    i64 n;

    T operator[](i64 c) const { return p[n == 1 ? 0 : c]; }

    template <class To>
    Lines<To> spread(const Strips& strips) const {
        return strips.spread<To>([&](i64 c) { return static_cast<To>((*this)[c]); });
    }
};

// inv = top / r, times 2^shift where there are shifts
inline Lines<float> inverse_steps(const Strips& strips, Values<float> r, Values<u8> shift, float top) {
    return strips.spread<float>([&](i64 c) {
        const float inv = inverse_step(r[c], top);
        return shift.p ? inv * power_of_two(shift[c]) : inv;
    });
}

// Is |count q - total| < 2^31 for every code q of a signed byte?
inline bool fits_in_32_bits(i64 count, const i64* total, i64 n) {
    i64 most = 0;
    for (i64 i = 0; i < n; ++i) most = std::max(most, total[i] < 0 ? -total[i] : total[i]);
    return count <= INT32_MAX && most + 128 * count <= INT32_MAX;
}

// The operands of a norm by slot, and the narrowing of k.
struct Norm {
    Lines<i32> total;
    Lines<float> factor, gamma, scale, beta;
    NormOperands operands;

    Norm(const Norm&) = delete;  // the operands point into the vectors
    Norm(
        const Strips& strips, Values<i64> totals, Values<float> factors, Values<i8> gammas, Values<float> scales,
        Values<float> betas, i64 count, int bits, int saved_bits)
        : total(totals.spread<i32>(strips)), factor(factors.spread<float>(strips)),
          gamma(gammas.spread<float>(strips)), scale(scales.spread<float>(strips)), beta(betas.spread<float>(strips)) {
        operands = {total.data(), factor.data(), gamma.data(), scale.data(), beta.data(), static_cast<i32>(count),
                    ((1 << (bits - 1)) - 1) * kOne, narrowing(bits, saved_bits)};
    }
};

// The operands of a norm's gradient by slot.
struct NormGrad {
    Lines<i32> gamma;
    Lines<float> a, offset[3];
    GradOperands operands;

    NormGrad(const NormGrad&) = delete;  // the operands point into the vectors
    NormGrad(
        const Strips& strips, Values<i8> gammas, Values<float> as, Values<float> u, Values<float> v, Values<float> t)
        : gamma(gammas.spread<i32>(strips)), a(as.spread<float>(strips)) {
        operands = {gamma.data(), a.data(), {}};
        for (int s = 0; s < 3; ++s) {
            const float sign = static_cast<float>(s - 1);
            offset[s] = strips.spread<float>([&](i64 c) { return u[c] + v[c] * (sign - t[c]); });
            operands.offset[s] = offset[s].data();
        }
    }
};

}  // namespace sb
