// The random bits of stochastic rounding, drawn for one tile of a tensor at a time.
//
// Bits belong to LOGICAL row-major indices, tiles to memory order:
//   order LINEAR       memory order is logical order
//   order TRANSPOSED   memory is (batch, pixels, channels), logic (batch, channels, pixels): channels_last, or x.T.
//                      Four pixels of a channel share a call, or two calls; lanes run over channels.
// What is drawn lies in the L1 cache for as long as it takes to use it. Without a stream there are tiles and no bits.
#pragma once

#include <algorithm>

#include "memory.h"
#include "parallel.h"
#include "quantize.h"

namespace sb {

struct Order {
    i64 batch, channels, pixels;  // pixels 1: LINEAR

    bool linear() const { return pixels == 1; }
};

class Draws {
public:
    // Elements for which bits are drawn at a time, about: so few that the floats behind them are fetched meanwhile.
    static constexpr i64 kTile = 1024;

    // tile: elements of a tile in memory order, a multiple of 4, where the order or the lack of bits leaves a choice
    Draws(const QuantizeKernels& kernel, const i64* stream, i64 n, Order order, i64 tile = kTile);

    // Can the kernels count the calls of this tensor? TRANSPOSED counts them in 32 bits.
    static bool covers(i64 n, Order order) { return order.linear() || n < i64{1} << 34; }

    i64 largest() const { return largest_; }  // elements of a tile, at most

    // body(begin, end, bits, worker) for the tiles of the tensor: a u16 for each element, or nullptr without a stream
    template <class Body>
    void each(int workers, const Body& body) const {
        const i64 group = std::max<i64>(1, kBlock / largest_);
        parallel(workers, ceil_div(tiles_, group), [&](i64 task, int worker) {
            Lines<u16> bits(drawn_ ? static_cast<size_t>(largest_ + kRandomSlack) : 0);
            for (i64 tile = task * group; tile < std::min((task + 1) * group, tiles_); ++tile) {
                const Span s = span(tile);
                if (drawn_) draw(s, bits.data());
                body(s.begin, s.end, drawn_ ? bits.data() : nullptr, worker);
            }
        });
    }

private:
    static constexpr i64 kBlock = 1 << 15;  // elements in a task

    struct Span {
        i64 begin, end, image, pixel;
    };
    Span span(i64 tile) const;
    void draw(const Span& s, u16* r) const;

    const QuantizeKernels& kernel_;
    bool drawn_, linear_;
    u64 stream_;
    i64 n_;
    Order order_;
    i64 width_, tiles_, largest_;  // width_: elements of a tile, or its pixels
};

}  // namespace sb
