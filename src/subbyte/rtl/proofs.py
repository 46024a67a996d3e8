"""Proofs by SAT, for all inputs: the multipliers equal `*`, and what they say about a wrong one.

yosys' own solver, so that pyosys is all it takes. 7 x 7 bits take seconds; 8 x 8 is simulated over all 65,536 pairs of
operands instead (tests/rtl).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .baselines_float import multiply_unsigned
from .multiplier import multiply
from .synth import SynthesisError, run_yosys, to_rtlil

SIGNED_PROOFS = ((2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7), (4, 7), (6, 7), (6, 9))
"""Operand widths proved for the Booth multiplier: square ones, and those of folded units."""

UNSIGNED_PROOFS = ((3, 3), (4, 4))
"""The significands of E5M2 and E4M3; those of FP16 (11 x 11) are simulated."""


class ProductEquals(wiring.Component):
    """equal = (the multiplier's product == a * b), for the solver to find where it is not."""

    def __init__(self, a_bits: int, b_bits: int, signed_operands: bool = True) -> None:
        self.signed_operands = signed_operands
        super().__init__({"a": In(a_bits), "b": In(b_bits), "equal": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        width = len(self.a) + len(self.b)
        expected = Signal(signed(width)) if self.signed_operands else Signal(width)
        product: Any
        if self.signed_operands:
            m.d.comb += expected.eq(self.a.as_signed() * self.b.as_signed())
            product = multiply(m, self.a.as_signed(), self.b.as_signed(), "booth")
        else:
            m.d.comb += expected.eq(self.a * self.b)
            product = multiply_unsigned(m, self.a, self.b, fabric=True)
        m.d.comb += self.equal.eq(product[:width] == expected[:width])
        return m


def holds(component: Any, output: str, sabotage: str = "") -> bool:
    """Whether a one-bit output of a combinational component is 1 for all inputs.

    sabotage: a yosys command that changes the circuit first, to see that a proof of it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "in.il").write_text(to_rtlil(component))
        commands = ["read_rtlil in.il", "proc", "flatten", "opt -full", sabotage]
        try:
            log = run_yosys([*commands, f"sat -verify -prove {output} 1 top"], path)
        except SynthesisError as stopped:
            if "Called with -verify and proof did fail!" in str(stopped):
                return False
            raise
    return "SAT proof finished - no model found: SUCCESS!" in log


def multiplier_is_exact(a_bits: int, b_bits: int, signed_operands: bool = True, sabotage: str = "") -> bool:
    """Prove a multiplier for all operands of the widths."""
    return holds(ProductEquals(a_bits, b_bits, signed_operands), "equal", sabotage)
