"""integer.requantize in a pipeline: one rounding right shift and a clamp, one value a cycle, nearest or stochastic.

    w = (v << 16) >> n          16 fraction bits stay below the point; `sticky` says whether any lower bit was lost
    nearest     q + (f > 1/2, or f = 1/2 and q odd)      q = w >> 16, f the fraction with sticky: half to even
    stochastic  (w + r16) >> 16                          = shift_right_stochastic(v, n, r16) for every n
    code        clamp(., qmin, qmax)

r16: the bits that numerics.random_bits16 gives element `index` of `stream`. v has `width` bits, w 16 more.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .. import numerics
from . import threefry
from .element import delayed
from .gemmconfig import MAX_SHIFT
from .threefry import Threefry

FRACTION = numerics.FRACTION_BITS
SHIFTER_STAGES = 2
INDEX_BITS = 34
"""Element indices up to 2^34: call numbers c = index >> 2 fill the low counter word."""


class Requantizer(wiring.Component):
    """valid, value, shift, index, last -> `latency` cycles later out_valid, out, out_last. A clock enable stalls it.

    enable 0: the value passes unchanged (raw accumulators). enable, stochastic, qmin, qmax, stream must stay constant
    while values are under way. random: include the generator; without it `stochastic` and `index` are ignored.
    """

    def __init__(self, width: int, random: bool = True) -> None:
        self.width, self.random = width, random
        super().__init__(
            {
                "valid": In(1),
                "last": In(1),
                "value": In(signed(width)),
                "shift": In(range(MAX_SHIFT + 1)),
                "index": In(INDEX_BITS),
                "enable": In(1),
                "stochastic": In(1),
                "stream": In(64),
                "qmin": In(signed(width)),
                "qmax": In(signed(width)),
                "out_valid": Out(1),
                "out_last": Out(1),
                "out": Out(signed(width)),
            }
        )

    @property
    def latency(self) -> int:
        return latency(self.random)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        wait = threefry.LATENCY if self.random else 0
        r16: Value = Const(0, FRACTION)
        if self.random:
            r16 = delayed(m, self._random_bits(m, wait), SHIFTER_STAGES, "r16")
        value = delayed(m, self.value, wait, "value")
        shift = delayed(m, self.shift, wait, "shift")

        w: Value = Cat(Const(0, FRACTION), value).as_signed()
        sticky: Value = Const(0, 1)
        levels = len(self.shift)
        for stage in range(SHIFTER_STAGES):
            for level in range(stage * levels // SHIFTER_STAGES, (stage + 1) * levels // SHIFTER_STAGES):
                step = 1 << level
                next_w, lost = Signal(signed(len(w)), name=f"w{level}"), Signal(name=f"lost{level}")
                m.d.comb += next_w.eq(Mux(shift[level], w >> step, w))
                m.d.comb += lost.eq(sticky | (shift[level] & w[: min(step, len(w))].any()))
                w, sticky = next_w, lost
            w, sticky = delayed(m, w, 1, f"w_{stage}"), delayed(m, sticky, 1, f"sticky_{stage}")
            shift = delayed(m, shift, 1, f"shift_{stage}")

        whole, fraction = w[FRACTION:].as_signed(), w[:FRACTION]
        carry = Signal(FRACTION + 1)
        m.d.comb += carry.eq(fraction + r16)
        up = fraction[-1] & (fraction[:-1].any() | sticky | whole[0])
        rounded = Signal(signed(self.width + 1))
        m.d.sync += rounded.eq(whole + Mux(self.stochastic & int(self.random), carry[-1], up))
        raw = delayed(m, value, SHIFTER_STAGES + 1, "raw")
        out = Signal(signed(self.width))
        with m.If(~self.enable):
            m.d.sync += out.eq(raw)
        with m.Elif(rounded < self.qmin):
            m.d.sync += out.eq(self.qmin)
        with m.Elif(rounded > self.qmax):
            m.d.sync += out.eq(self.qmax)
        with m.Else():
            m.d.sync += out.eq(rounded)
        m.d.comb += self.out.eq(out)
        m.d.comb += self.out_valid.eq(delayed(m, self.valid, self.latency, "valid"))
        m.d.comb += self.out_last.eq(delayed(m, self.last, self.latency, "last"))
        return m

    def _random_bits(self, m: Module, wait: int) -> Signal:
        """Lane index & 3 of call index >> 2, `wait` cycles after the index."""
        m.submodules.threefry = generator = Threefry()
        m.d.comb += [generator.counter_low.eq(self.index[2:]), generator.counter_high.eq(0)]
        m.d.comb += [generator.key_low.eq(self.stream[:32]), generator.key_high.eq(self.stream[32:])]
        lane = delayed(m, self.index[:2], wait, "lane")
        word = Mux(lane[1], generator.word1, generator.word0)
        r16 = Signal(FRACTION)
        m.d.comb += r16.eq(Mux(lane[0], word[FRACTION:], word[:FRACTION]))
        return r16


def latency(random: bool) -> int:
    """Cycles through a Requantizer: Threefry, the halves of the shifter, rounding, clamp."""
    return (threefry.LATENCY if random else 0) + SHIFTER_STAGES + 2
