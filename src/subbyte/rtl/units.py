"""The constructors of the arithmetic units, one for each kind: what synthesis, tests and the GEMM core build from.

multiplier(a_bits, b_bits, style)        a b, combinational
element(spec)                            one ProcessingElement with input registers
dot(spec with lanes)                     the same with `lanes` products a cycle: plain, horner, tree
array(spec, rows, cols)                  output-stationary, broadcast
dsp_tile(spec, rows, cols)               two multiply-accumulates in each DSP48E1
"""

from __future__ import annotations

from amaranth.hdl import Module, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from . import dspbounds
from .array import Array, slot_ports
from .dspbounds import chunk_units, field_bits
from .dsptile import DspTile
from .element import ProcessingElement
from .multiplier import multiply
from .spec import MULTIPLIERS, VARIANTS, BoundError, Spec, spec_for

__all__ = [
    "MULTIPLIERS",
    "VARIANTS",
    "Array",
    "BoundError",
    "DspTile",
    "Multiplier",
    "ProcessingElement",
    "Spec",
    "array",
    "chunk_units",
    "dot",
    "dsp_tile",
    "element",
    "field_bits",
    "multiplier",
    "spec_for",
]


class Multiplier(wiring.Component):
    """product = a b, signed, combinational; style as in Spec.multiplier."""

    def __init__(self, a_bits: int, b_bits: int, style: str = "booth") -> None:
        self.style = style
        super().__init__({"a": In(signed(a_bits)), "b": In(signed(b_bits)), "product": Out(signed(a_bits + b_bits))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.product.eq(multiply(m, self.a, self.b, self.style))
        return m


def multiplier(a_bits: int, b_bits: int, style: str = "booth") -> Multiplier:
    return Multiplier(a_bits, b_bits, style)


def element(spec: Spec) -> ProcessingElement:
    return ProcessingElement(spec)


def dot(spec: Spec) -> ProcessingElement:
    return ProcessingElement(spec)


def array(spec: Spec, rows: int = 8, cols: int = 8) -> Array:
    slot_ports(spec, rows, cols)  # refuses before Amaranth counts an unused circuit
    return Array(spec, rows, cols)


def dsp_tile(spec: Spec, rows: int = 8, cols: int = 8, primitive: bool = True) -> DspTile:
    dspbounds.require(spec, rows)
    return DspTile(spec, rows, cols, primitive)
