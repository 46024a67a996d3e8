"""The quantizer as an AXI4-Stream block: integers in, codes out, rounded to nearest or stochastically.

    code[i] = clamp(round(value[i] / 2^shift[i]), qmin, qmax),    r16[i] = random_bits16(stream)[i]

value is an accumulator, or the fixed-point t of numerics.to_fixed with shift 16: then this is ops.quantize.
"""

from __future__ import annotations

from amaranth.hdl import EnableInserter, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from . import requantizer
from .axi import stream_in, stream_out
from .gemmconfig import MAX_SHIFT
from .requantizer import INDEX_BITS, Requantizer

BYTE = 8


class Quantizer(wiring.Component):
    """s_axis: tdata = value (32 bits), tuser = shift, tlast ends a tensor (the index rewinds). m_axis: a code a byte.

    One element a cycle. stochastic, stream, qmin, qmax: static while a tensor passes.
    """

    def __init__(self, width: int = 32, random: bool = True) -> None:
        self.width, self.random = width, random
        super().__init__(
            {
                **stream_in("s_axis", width, last=True),
                "s_axis_tuser": In(range(MAX_SHIFT + 1)),
                **stream_out("m_axis", BYTE, last=True),
                "stochastic": In(1),
                "stream": In(64),
                "qmin": In(signed(BYTE + 1)),
                "qmax": In(signed(BYTE + 1)),
            }
        )

    @property
    def latency(self) -> int:
        return requantizer.latency(self.random)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        unit = Requantizer(self.width, self.random)
        advance = Signal()
        m.submodules.requantizer = EnableInserter(advance)(unit)
        index = Signal(INDEX_BITS)
        m.d.comb += advance.eq(~unit.out_valid | self.m_axis_tready)
        m.d.comb += self.s_axis_tready.eq(advance)
        with m.If(self.s_axis_tvalid & advance):
            m.d.sync += index.eq(index + 1)
            with m.If(self.s_axis_tlast):
                m.d.sync += index.eq(0)
        m.d.comb += [
            unit.valid.eq(self.s_axis_tvalid),
            unit.last.eq(self.s_axis_tlast),
            unit.value.eq(self.s_axis_tdata),
            unit.shift.eq(self.s_axis_tuser),
            unit.index.eq(index),
            unit.enable.eq(1),
            unit.stochastic.eq(self.stochastic),
            unit.stream.eq(self.stream),
            unit.qmin.eq(self.qmin),
            unit.qmax.eq(self.qmax),
            self.m_axis_tvalid.eq(unit.out_valid),
            self.m_axis_tlast.eq(unit.out_last),
            self.m_axis_tdata.eq(unit.out),
        ]
        return m
