// A dense tensor with its channels along one axis, served to kernels as matrices with a channel for each column.
//
// The tensor is (outer, channels, inner) in memory order. A kernel that takes a strip of columns keeps what belongs to
// them (operands, sums) in registers while it goes down the rows:
//   COLUMNS  short runs (channels_last, matrices, small planes): a column for each of channels * inner; narrow tensors
//            take several rows at a time, so that strips of lanes fill
//   RUNS     long runs (NCHW): a run is a matrix of kRunLanes columns, which all belong to its channel
// A slot is the place of a column in the arrays of operands and sums; several slots make one channel.
#pragma once

#include <algorithm>
#include <numeric>

#include "memory.h"

namespace sb {

struct Shape {
    i64 outer, channels, inner;

    i64 size() const { return outer * channels * inner; }
    i64 count() const { return outer * inner; }
};

class Strips {
public:
    static constexpr i64 kRunLanes = 32;    // columns of a strip in the widest ISA
    static constexpr i64 kMaxSlots = 4096;  // columns beyond which a short tail of a strip does not matter

    explicit Strips(const Shape& shape) : shape_(shape), columns_(shape.inner < kRunLanes) {
        period_ = shape.channels * shape.inner;
        const i64 strips = kRunLanes / std::gcd(period_, kRunLanes);  // repeats that end on a whole strip
        repeat_ = period_ * strips <= kMaxSlots ? std::min(strips, shape.outer) : 1;
        slots_ = columns_ ? period_ * repeat_ : shape.channels * kRunLanes;
    }
    i64 slots() const { return slots_; }

    // Elements of a tile, at most `most`, which is a multiple of 8: so is the tile, and one of whole rows if any fit.
    i64 tile(i64 most) const {
        const i64 row = columns_ ? slots_ : kRunLanes, unit = row * 8 / std::gcd<i64>(row, 8);
        return unit <= most ? most / unit * unit : most;
    }

    // matrix(at, rows, columns, slot) for the matrices that cover elements begin .. end
    template <class Matrix>
    void visit(i64 begin, i64 end, const Matrix& matrix) const {
        if (!columns_) {
            for (i64 at = begin; at < end;) {
                const i64 run = at / shape_.inner, stop = std::min(end, (run + 1) * shape_.inner);
                const i64 rows = (stop - at) / kRunLanes, rest = (stop - at) % kRunLanes;
                const i64 slot = run % shape_.channels * kRunLanes;
                if (rows) matrix(at, rows, kRunLanes, slot);
                if (rest) matrix(stop - rest, i64{1}, rest, slot);
                at = stop;
            }
            return;
        }
        i64 slot = begin % slots_;
        if (repeat_ > 1 && slot % period_ == 0) slot = 0;  // a row may begin at any of its repeats
        if (slot) {
            const i64 head = std::min(slots_ - slot, end - begin);
            matrix(begin, i64{1}, head, slot);
            begin += head;
        }
        const i64 rows = (end - begin) / slots_, rest = (end - begin) % slots_;
        if (rows) matrix(begin, rows, slots_, i64{0});
        if (rest) matrix(end - rest, i64{1}, rest, i64{0});
    }

    // slot(i) for every slot of channel c
    template <class Slot>
    void of_channel(i64 c, const Slot& slot) const {
        if (!columns_)
            for (i64 i = 0; i < kRunLanes; ++i) slot(c * kRunLanes + i);
        else
            for (i64 k = 0; k < repeat_; ++k)
                for (i64 i = 0; i < shape_.inner; ++i) slot(k * period_ + c * shape_.inner + i);
    }

    // value(c) for each slot of each channel c, and a strip of zeros behind them
    template <class T, class Value>
    Lines<T> spread(const Value& value) const {
        Lines<T> to(static_cast<size_t>(slots_ + kRunLanes));
        for (i64 c = 0; c < shape_.channels; ++c) {
            const T v = value(c);
            of_channel(c, [&](i64 s) { to[static_cast<size_t>(s)] = v; });
        }
        return to;
    }

private:
    Shape shape_;
    bool columns_;
    i64 period_, repeat_, slots_;
};

// An array for each worker, on cache lines of its own.
template <class T>
class PerWorker {
public:
    PerWorker(i64 n, int workers, T first)
        : stride_(round_up<i64>(n + Strips::kRunLanes, 64)), values_(static_cast<size_t>(stride_ * workers), first) {}
    T* of(int worker) { return &values_[static_cast<size_t>(worker * stride_)]; }

private:
    i64 stride_;
    Lines<T> values_;
};

}  // namespace sb
