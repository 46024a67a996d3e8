// Random bits by the tile. See draw.h.
#include "draw.h"

namespace sb {
namespace {

constexpr i64 kPixels = 16;  // of a tile at least, where a call is drawn twice if two tiles have a part of it

}  // namespace

Draws::Draws(const QuantizeKernels& kernel, const i64* stream, i64 n, Order order, i64 tile)
    : kernel_(kernel), drawn_(stream), linear_(!stream || order.linear()), stream_(stream ? *stream : 0), n_(n),
      order_(order) {
    if (linear_) {
        width_ = largest_ = tile;
        tiles_ = ceil_div(n, width_);
        return;
    }
    const i64 some = round_up<i64>(ceil_div(kTile, order.channels), 4);
    width_ = std::min(order.pixels, order.pixels % 4 == 0 ? some : std::max(some, kPixels));
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
    kernel_.random_pixels(
        stream_, static_cast<u64>(first), static_cast<u64>(pixels), channels, (s.end - s.begin) / channels, r);
}

}  // namespace sb
