// Random bits by the tile. See draw.h.
#include "draw.h"

namespace sb {
namespace {

constexpr i64 kOneDraw = 61;  // pixels that one vector of calls covers wherever they start: 4 * 16 - 3

}  // namespace

Draws::Draws(const QuantizeKernels& kernel, const i64* stream, i64 n, Order order, i64 tile)
    : kernel_(kernel), drawn_(stream), linear_(!stream || order.linear()), stream_(stream ? *stream : 0), n_(n),
      order_(order) {
    if (linear_) {
        width_ = largest_ = tile;
        tiles_ = ceil_div(n, width_);
        return;
    }
    const i64 some = order.pixels % 4 == 0 ? round_up<i64>(ceil_div(kTile, order.channels), 4) : kOneDraw;
    width_ = std::min(order.pixels, some);
    tiles_ = order.batch * ceil_div(order.pixels, width_);
    largest_ = width_ * order.channels;
}

Draws::Span Draws::span(i64 tile) const {
    if (linear_) return {tile * width_, std::min((tile + 1) * width_, n_), 0, 0};
    const i64 each = ceil_div(order_.pixels, width_), image = tile / each, pixel = tile % each * width_;
    const i64 stop = std::min(pixel + width_, order_.pixels), first = image * order_.pixels;
    return {(first + pixel) * order_.channels, (first + stop) * order_.channels, image, pixel};
}

void Draws::draw(const Span& s, u16* r) const {
    if (linear_) {
        kernel_.random_run(stream_, static_cast<u64>(s.begin / 4), ceil_div<i64>(s.end - s.begin, 4), r);
        return;
    }
    const auto [batch, channels, pixels] = order_;
    const i64 first = s.image * channels * pixels + s.pixel;  // logical index of channel 0
    const i64 count = (s.end - s.begin) / channels;
    if (pixels % 4 == 0) {
        kernel_.random_pixels(
            stream_, static_cast<u64>(first / 4), static_cast<u64>(pixels / 4), channels, count / 4, r);
        return;
    }
    u16 drawn[4 * kLanes + kRandomSlack];
    for (i64 c = 0; c < channels; ++c) {
        const i64 start = first + c * pixels;
        kernel_.random_run(stream_, static_cast<u64>(start / 4), ceil_div<i64>(start % 4 + count, 4), drawn);
        for (i64 j = 0; j < count; ++j) r[j * channels + c] = drawn[start % 4 + j];
    }
}

}  // namespace sb
