// Operands that broadcast over a dense tensor, served to kernels one piece at a time.
//
// An operand has one value for each index of some axis (or adjacent axes): element i of the tensor, in memory order,
// takes value (i / inner) % channels. A piece is a run of elements over which each operand is either one value or a
// run of its own. Both look the same to a kernel: lane j reads p[step * j], with step 0 for one value (of which
// kLanes copies lie at p) and step 1 for a run. So one kernel serves NCHW, NHWC, rows and whole tensors alike.
#pragma once

#include <algorithm>

#include "memory.h"

namespace sb {

constexpr int kLanes = 16;        // the widest vector, in 32-bit lanes
constexpr i64 kShortRun = 32;     // where an axis changes its index faster than this, its values become a run
constexpr i64 kMinPeriod = 1024;  // and short periods are repeated, so that a piece is worth a call

template <class T>
struct Lane {
    const T* p;
    i64 step;  // 0 or 1
};

// How an operand's index follows from an element's.
struct Axis {
    i64 channels, inner;
    i64 period = 0;  // of the repeated values, 0 where an index stays the same for at least kShortRun elements

    Axis(i64 channels, i64 inner, i64 n) : channels(channels), inner(inner) {
        if (channels > 1 && inner < kShortRun) {
            const i64 once = channels * inner;
            period = once * std::max<i64>(1, std::min(ceil_div(kMinPeriod, once), ceil_div(n, once)));
        }
    }
    bool operator==(const Axis& o) const { return channels == o.channels && inner == o.inner; }

    struct Position {
        i64 at;   // index of the value, or where the run begins
        i64 run;  // how many elements this stays valid for
    };
    Position position(i64 i) const {
        if (channels == 1) return {0, INT64_MAX};
        if (period) return {i % period, period - i % period};
        return {(i / inner) % channels, inner - i % inner};
    }
};

template <class T>
class Operand {
public:
    Operand(const T* values, const Axis& axis) : values_(values), axis_(axis) {
        if (!axis.period) return;
        repeated_.resize(static_cast<size_t>(axis.period + kLanes));  // the last vector of a piece may reach past it
        T* to = repeated_.data();
        for (i64 c = 0; c < axis.channels; ++c)
            for (i64 j = 0; j < axis.inner; ++j) *to++ = values[c];
        for (i64 i = axis.channels * axis.inner; i < axis.period; ++i, ++to) *to = to[-axis.channels * axis.inner];
    }
    const Axis& axis() const { return axis_; }

    // buffer: kLanes values that live as long as the piece.
    Lane<T> lane(i64 at, T* buffer) const {
        if (axis_.period) return {repeated_.data() + at, 1};
        std::fill(buffer, buffer + kLanes, values_[at]);
        return {buffer, 0};
    }

private:
    const T* values_;
    Axis axis_;
    Lines<T> repeated_;
};

}  // namespace sb
