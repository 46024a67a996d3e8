// Operands of the chain's passes: one value, or one for each channel, brought to the slots of strips.h.
#pragma once

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
    std::vector<To> spread(const Strips& strips) const {
        return strips.spread<To>([&](i64 c) { return static_cast<To>((*this)[c]); });
    }
};

// inv = top / r, times 2^shift where there are shifts
inline std::vector<float> inverse_steps(const Strips& strips, Values<float> r, Values<u8> shift, float top) {
    return strips.spread<float>([&](i64 c) {
        const float inv = inverse_step(r[c], top);
        return shift.p ? inv * power_of_two(shift[c]) : inv;
    });
}

// The operands of a norm's gradient by slot.
struct NormGrad {
    std::vector<i32> gamma;
    std::vector<float> a, offset[3];
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
