"""The DSP48E1 in the one configuration that the tile uses, as the primitive and as a model of it for simulation.

    P <= opmode: ADD P + (D + A) B · DOUBLE P + P · DRAIN PCIN · HOLD P        48 bits, wrapping

Registers: A, D (1), D + A (2), product (3), P (4); B two deep; OPMODE one deep. An operand at the ports in cycle t
is in P from t + 4; the opmode that adds it is at the port in cycle t + 2. (UG479: Z, Y, X multiplexers, OPMODE[6:0].)
"""

from __future__ import annotations

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, ResetSignal, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

HOLD = 0b010_00_00
ADD = 0b010_01_01
DOUBLE = 0b010_00_10
DRAIN = 0b001_00_00

A_BITS, B_BITS, P_BITS = 25, 18, 48
DATA_LATENCY = 4
OPMODE_LEAD = 2
"""Cycles by which the opmode trails its operands at the ports."""


class Dsp48(wiring.Component):
    """primitive: the DSP48E1 instance (synthesis); otherwise its model (Amaranth's simulator, generic targets)."""

    def __init__(self, primitive: bool) -> None:
        self.primitive = primitive
        super().__init__(
            {
                "a": In(signed(A_BITS)),
                "d": In(signed(A_BITS)),
                "b": In(signed(B_BITS)),
                "opmode": In(7),
                "p_in": In(signed(P_BITS)),
                "p": Out(signed(P_BITS)),
                "p_out": Out(signed(P_BITS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        if self.primitive:
            m.submodules.dsp = self._instance()
            return m
        a, d, pre = Signal(signed(A_BITS)), Signal(signed(A_BITS)), Signal(signed(A_BITS))
        b1, b2 = Signal(signed(B_BITS)), Signal(signed(B_BITS))
        product, p, op = Signal(signed(A_BITS + B_BITS)), Signal(signed(P_BITS)), Signal(7)
        m.d.sync += [a.eq(self.a), d.eq(self.d), pre.eq(a + d), b1.eq(self.b), b2.eq(b1), product.eq(pre * b2)]
        m.d.sync += op.eq(self.opmode)
        with m.Switch(op):
            with m.Case(ADD):
                m.d.sync += p.eq(p + product)
            with m.Case(DOUBLE):
                m.d.sync += p.eq(p + p)
            with m.Case(DRAIN):
                m.d.sync += p.eq(self.p_in)
        m.d.comb += [self.p.eq(p), self.p_out.eq(p)]
        return m

    def _instance(self) -> Instance:
        one, zero = Const(1, 1), Const(0, 1)
        registers = dict.fromkeys(
            ("AREG", "ACASCREG", "BCASCREG", "ADREG", "DREG", "MREG", "PREG", "CREG", "OPMODEREG"), 1
        )
        registers |= {"BREG": 2} | dict.fromkeys(("INMODEREG", "ALUMODEREG", "CARRYINREG", "CARRYINSELREG"), 0)
        enabled = ("CEA1", "CEA2", "CEAD", "CEALUMODE", "CEB1", "CEB2", "CECTRL", "CED", "CEINMODE", "CEM", "CEP")
        resets = ("RSTA", "RSTALLCARRYIN", "RSTALUMODE", "RSTB", "RSTC", "RSTCTRL", "RSTD", "RSTINMODE", "RSTM")
        unused = ("CEC", "CECARRYIN", "CARRYIN", "CARRYCASCIN", "MULTSIGNIN", *resets)
        ports = {
            "CLK": ClockSignal(),
            "RSTP": ResetSignal(),  # sums start at 0; no other register needs it
            "A": Cat(self.a, self.a[-1].replicate(30 - A_BITS)),
            "B": self.b,
            "C": Const(0, 48),
            "D": self.d,
            "PCIN": self.p_in,
            "OPMODE": self.opmode,
            "ALUMODE": Const(0, 4),
            "INMODE": Const(0b00100, 5),
            "CARRYINSEL": Const(0, 3),
            "ACIN": Const(0, 30),
            "BCIN": Const(0, 18),
        }
        return Instance(
            "DSP48E1",
            p_USE_DPORT="TRUE",
            p_USE_MULT="MULTIPLY",
            **{f"p_{k}": v for k, v in registers.items()},
            **{f"i_{k}": v for k, v in ports.items()},
            **{f"i_{k}": one for k in enabled},
            **{f"i_{k}": zero for k in unused},
            o_P=self.p,
            o_PCOUT=self.p_out,
        )
