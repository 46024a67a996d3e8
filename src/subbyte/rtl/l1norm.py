"""Integer L1 normalization, integer.l1_normalize over one statistic after another: mean, mean |x - mu|, apply.

    load    q[0..n-1] into a buffer      S += q
    spread  d = n q - S                  A += |d|
    divide  rec = floor((n << 30) / ((c A') >> k)),  A' = max(A, n^2 >> 7, 1), k = ceil(log2 n): 24 steps, a bit each
    apply   code = requantize(d rec, 16 + k - fraction)     nearest

3 n + 24 cycles and a few tens for n codes; one buffer, so the next statistic loads when this one has been read out.
Widths (bits, sign included; b-bit codes, n <= 2^k): S b + k, d b + k + 1, A b + 2 k + 1, c A b + 2 k + 16, rec 24
(unsigned), d rec b + k + 25. The quotient has at most 24 bits because A' >= n^2 / 2^7: so the division can start
with the dividend >> 24.
"""

from __future__ import annotations

from amaranth.hdl import EnableInserter, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .. import integer
from ..numerics import IntFormat
from .axi import stream_in, stream_out
from .gemmconfig import MAX_SHIFT
from .requantizer import Requantizer
from .spec import BoundError

QUOTIENT_BITS = integer.RECIPROCAL_BITS + 8
BYTE = 8


class L1Norm(wiring.Component):
    """s_axis: n codes, a byte each, tlast on the last (n comes from it); m_axis: n normalized codes, tlast likewise.

    fmt          format of the input codes; outputs are signed, qmax by port
    max_n        the longest statistic, a power of two; at most integer.MAX_COUNT
    fraction     static: outputs are codes of 2^-fraction
    """

    def __init__(self, fmt: IntFormat, max_n: int = 1024) -> None:
        if max_n & (max_n - 1) or not 2 <= max_n <= integer.MAX_COUNT:
            raise BoundError(f"max_n = {max_n}: a power of two, 2 to {integer.MAX_COUNT}")
        self.fmt, self.max_n = fmt, max_n
        super().__init__(
            {
                **stream_in("s_axis", BYTE, last=True),
                **stream_out("m_axis", BYTE, last=True),
                "fraction": In(range(16)),
                "qmax": In(BYTE),
                "overrun": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        k_max = (self.max_n - 1).bit_length()
        b = self.fmt.bits + (not self.fmt.signed)
        count = Signal(k_max + 1)  # n
        at = Signal(k_max + 1)
        total = Signal(signed(b + k_max))  # S
        spread = Signal(b + 2 * k_max)  # A
        codes = Memory(shape=signed(b), depth=self.max_n, init=[])
        m.submodules.codes = codes
        write, read = codes.write_port(), codes.read_port()

        # d = n q - S, two cycles after its address: the memory's register, then this one.
        d = Signal(signed(b + k_max + 1))
        m.d.comb += [read.addr.eq(at), read.en.eq(1)]
        product = Signal(signed(b + k_max + 1))
        m.d.comb += product.eq(read.data * count)
        deviation = Signal(signed(b + k_max + 1))
        m.d.comb += deviation.eq(product - total)

        k = Signal(range(k_max + 1))  # ceil(log2 n) = bit length of n - 1
        for i in range(k_max):
            with m.If((count - 1)[i]):
                m.d.comb += k.eq(i + 1)

        divisor, remainder, quotient = self._divider_registers(b, k_max)
        low_bits = Signal(QUOTIENT_BITS)
        step = Signal(range(QUOTIENT_BITS))
        shift = Signal(range(MAX_SHIFT + 1))
        m.d.comb += shift.eq(integer.RECIPROCAL_BITS + k - self.fraction)

        unit = Requantizer(len(d) + QUOTIENT_BITS, random=False)
        advance, applying = Signal(), Signal()
        m.submodules.requantizer = EnableInserter(advance)(unit)
        m.d.comb += advance.eq(~unit.out_valid | self.m_axis_tready)

        with m.FSM():
            with m.State("LOAD"):
                m.d.comb += self.s_axis_tready.eq(1)
                m.d.comb += [write.addr.eq(at), write.data.eq(self.s_axis_tdata), write.en.eq(self.s_axis_tvalid)]
                with m.If(self.s_axis_tvalid):
                    m.d.sync += [at.eq(at + 1), total.eq(total + write.data), count.eq(at + 1)]
                    with m.If(self.s_axis_tlast):
                        m.d.sync += [at.eq(0), spread.eq(0), self.overrun.eq(at >= self.max_n)]
                        m.next = "SPREAD"
            with m.State("SPREAD"):  # one address a cycle; |d| follows two cycles behind
                m.d.sync += [d.eq(deviation), at.eq(at + 1)]
                size = Mux(d < 0, -d, d)
                with m.If(at >= 2):
                    m.d.sync += spread.eq(spread + size)
                with m.If(at == count + 1):
                    m.d.sync += at.eq(0)
                    m.next = "FLOOR"
            with m.State("FLOOR"):  # A' = max(A, n^2 >> 7, 1)
                least = Signal(2 * k_max + 2)
                m.d.comb += least.eq((count * count) >> 7)
                with m.If(spread < least):
                    m.d.sync += spread.eq(least)
                with m.Elif(spread == 0):
                    m.d.sync += spread.eq(1)
                m.next = "SCALE"
            with m.State("SCALE"):
                m.d.sync += divisor.eq((spread * integer.L1_FACTOR_FIXED) >> k)
                dividend = count << (integer.RECIPROCAL_BITS + integer.L1_FACTOR_BITS)
                m.d.sync += [remainder.eq(dividend >> QUOTIENT_BITS), low_bits.eq(dividend[:QUOTIENT_BITS])]
                m.d.sync += step.eq(0)
                m.next = "DIVIDE"
            with m.State("DIVIDE"):
                shifted = Signal(len(remainder) + 1)
                m.d.comb += shifted.eq((remainder << 1) | low_bits[-1])
                fits = shifted >= divisor
                m.d.sync += [remainder.eq(Mux(fits, shifted - divisor, shifted)), low_bits.eq(low_bits << 1)]
                m.d.sync += [quotient.eq((quotient << 1) | fits), step.eq(step + 1)]
                with m.If(step == QUOTIENT_BITS - 1):
                    m.next = "APPLY"
            with m.State("APPLY"):
                m.d.comb += applying.eq(at != count)
                with m.If(advance & applying):
                    m.d.sync += at.eq(at + 1)
                with m.If(self.m_axis_tvalid & self.m_axis_tready & self.m_axis_tlast):
                    m.d.sync += [at.eq(0), total.eq(0)]
                    m.next = "LOAD"

        # The apply pipeline: address, code, d, product, requantize; it stalls as one.
        d_apply, scaled = Signal.like(d), Signal(signed(len(d) + QUOTIENT_BITS))
        with m.If(advance):
            m.d.sync += [d_apply.eq(deviation), scaled.eq(d_apply * quotient)]
        with m.If(~advance & (applying | unit.out_valid)):
            m.d.comb += read.en.eq(0)
        for name, v in (("valid", applying), ("last", applying & (at == count - 1))):
            staged = Signal(3, name=f"{name}_staged")
            with m.If(advance):
                m.d.sync += staged.eq((staged << 1) | v)
            m.d.comb += getattr(unit, name).eq(staged[2])
        m.d.comb += [unit.value.eq(scaled), unit.shift.eq(shift), unit.enable.eq(1)]
        m.d.comb += [unit.qmax.eq(self.qmax), unit.qmin.eq(-self.qmax)]
        m.d.comb += [self.m_axis_tvalid.eq(unit.out_valid), self.m_axis_tlast.eq(unit.out_last)]
        m.d.comb += self.m_axis_tdata.eq(unit.out)
        return m

    def _divider_registers(self, b: int, k_max: int) -> tuple[Signal, Signal, Signal]:
        """Divisor (c A >> k), remainder (always below it), quotient."""
        width = b + k_max + 17
        return Signal(width, name="divisor"), Signal(width, name="remainder"), Signal(QUOTIENT_BITS, name="quotient")
