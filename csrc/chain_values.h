// Operands of the chain's passes: one value, or one for each channel, brought to the slots of strips.h.
#pragma once

#include <vector>

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

}  // namespace sb
