"""Floating-point multiply-accumulate elements, and an array of them: what the integer units are compared with.

They have the shape of the integer elements and array (element.py, array.py): operands broadcast from registers at the
edge, a registered product, an accumulator that doubles as the drain chain. So a difference in the resource table is
arithmetic, not plumbing.

    FloatElement   a b in one float format, accumulated in a float format; serial (the adder in one cycle) or pipelined
    FixedElement   FP8 products, subnormals included, shifted into one exact fixed-point accumulator
    BaselineArray  rows x cols of either

A pipelined adder of c cuts holds c + 1 sums that take turns; adding those up at the end is not built and not charged,
which favours floating point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .baselines_float import (
    FloatFormat,
    add_with_carry,
    delayed,
    float_add,
    float_product,
    named,
    registers,
    round_nearest_even,
)


class BaselineElement(wiring.Component):
    """One multiply-accumulate a cycle; acc[t + latency] holds the operands of cycle t.

    a, b     operands (bit patterns)          drain, d_in   acc takes the neighbour's d_in instead of its sum
    registered: with operand registers (a lone element); an array has them at its edge.
    """

    stages: int

    def __init__(self, operand_bits: int, acc_bits: int, registered: bool = True) -> None:
        self.operand_bits, self.acc_bits, self.registered = operand_bits, acc_bits, registered
        super().__init__(
            {
                "a": In(operand_bits),
                "b": In(operand_bits),
                "drain": In(1),
                "d_in": In(acc_bits),
                "acc": Out(acc_bits),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from an operand at the port to its effect on acc."""
        return self.registered + self.stages + 1

    def elaborate(self, platform: object) -> Module:
        m = Module()
        a, b = registers(m, [self.a, self.b], self.registered)
        acc = Signal(self.acc_bits, name="acc_q")
        m.d.sync += acc.eq(self.accumulate(m, a, b, acc))
        m.d.comb += self.acc.eq(acc)
        return m

    def accumulate(self, m: Module, a: Value, b: Value, acc: Value) -> Value:
        """The accumulator's next value."""
        raise NotImplementedError


class FloatElement(BaselineElement):
    """acc + a b: operands in `operand`, the product rounded to `total`, sums in `total`.

    cuts      where registers cut the adder (0..3); none: the whole adder in one cycle
    fabric    Booth rows in LUTs; False leaves the multiplication to a DSP
    """

    def __init__(
        self,
        operand: FloatFormat,
        total: FloatFormat,
        cuts: tuple[int, ...] = (),
        fabric: bool = True,
        registered: bool = True,
    ) -> None:
        self.operand, self.total, self.cuts, self.fabric = operand, total, cuts, fabric
        self.widening = total.fraction >= 2 * operand.fraction + 1
        if not self.widening and operand != total:
            raise ValueError(f"products of {operand} are exact in {total} or rounded to {operand} itself, nothing else")
        self.stages = (1 if self.widening else 2) + len(cuts)
        super().__init__(operand.width, total.width, registered)

    def accumulate(self, m: Module, a: Value, b: Value, acc: Value) -> Value:
        operand, total = self.operand, self.total
        p = float_product(m, a, b, operand, self.fabric, subnormals=False)
        sign, exponent_sum, significand, alive = registers(m, [p.sign, p.exponent, p.significand, p.alive])
        top = significand[-1]
        leading = named(m, Mux(top, significand, significand << 1), len(significand))
        if self.widening:
            exponent = named(m, exponent_sum + (total.bias - 2 * operand.bias) + top, total.exponent)
            fraction = Cat(Const(0, total.fraction - len(leading) + 1), leading[:-1])
            product: Value = named(m, Mux(alive, Cat(fraction, exponent, sign), 0))
        else:
            stored = Signal(operand.exponent + 2)
            m.d.comb += stored.eq(exponent_sum - operand.bias + top)
            fraction, rounded = round_nearest_even(m, leading, stored.as_signed(), operand)
            normal = alive & (stored.as_signed() > 0)
            rounded_product = Mux(normal, Cat(fraction, rounded[: operand.exponent], sign), 0)
            (product,) = registers(m, [named(m, rounded_product)])
        return Mux(self.drain, self.d_in, float_add(m, product, acc, total, self.cuts))


class FixedElement(BaselineElement):
    """Exact sum of FP8 products in units of the smallest: no rounding, at the price of a wide accumulator."""

    stages = 2

    def __init__(self, operand: FloatFormat, acc_bits: int, registered: bool = True) -> None:
        self.operand = operand
        super().__init__(operand.width, acc_bits, registered)

    @staticmethod
    def product_bits(operand: FloatFormat) -> int:
        """Bits of the largest product's magnitude, in units of the smallest."""
        return 2 * operand.fraction + 2 + 2 * ((1 << operand.exponent) - 2)

    def accumulate(self, m: Module, a: Value, b: Value, acc: Value) -> Value:
        p = float_product(m, a, b, self.operand, fabric=True, subnormals=True)
        sign, exponent_sum, significand = registers(m, [p.sign, p.exponent, p.significand])
        width = self.product_bits(self.operand)
        shifted = named(m, (significand << (exponent_sum - 2)[: self.operand.exponent + 1])[:width], width)
        sign, shifted = registers(m, [sign, shifted])
        term = Cat(shifted, Const(0, max(0, self.acc_bits - width)))[: self.acc_bits]
        base = named(m, Mux(self.drain, self.d_in, acc))
        return add_with_carry(base, term ^ sign.replicate(self.acc_bits), sign)[: self.acc_bits]


class BaselineArray(wiring.Component):
    """rows x cols elements, operands broadcast as in array.Array; `out` is the last row's accumulators."""

    def __init__(self, make: Callable[[], BaselineElement], rows: int = 8, cols: int = 8) -> None:
        self.rows, self.cols = rows, cols
        self.elements = [[make() for _ in range(cols)] for _ in range(rows)]
        one = self.elements[0][0]
        if one.registered:
            raise ValueError("an array registers its operands at the edge: make elements with registered=False")
        self.operand_bits, self.acc_bits, self.stages = one.operand_bits, one.acc_bits, one.stages
        super().__init__(
            {
                "a": In(rows * self.operand_bits),
                "b": In(cols * self.operand_bits),
                "valid": In(1),
                "drain": In(1),
                "out": Out(cols * self.acc_bits),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        w = self.operand_bits
        a = [self._edge(m, self.a[i * w : (i + 1) * w]) for i in range(self.rows)]
        b = [self._edge(m, self.b[i * w : (i + 1) * w]) for i in range(self.cols)]
        drain = delayed(m, self.drain, 1)
        above: list[Any] = [Const(0, self.acc_bits)] * self.cols
        for r in range(self.rows):
            for c in range(self.cols):
                element = self.elements[r][c]
                m.submodules[f"pe_{r}_{c}"] = element
                m.d.comb += [element.a.eq(a[r]), element.b.eq(b[c]), element.drain.eq(drain)]
                m.d.comb += element.d_in.eq(above[c])
                above[c] = element.acc
        m.d.comb += self.out.eq(Cat(*above))
        return m

    def _edge(self, m: Module, operand: Value) -> Signal:
        """An operand register that is 0 where no operand is valid."""
        q = Signal(self.operand_bits)
        m.d.sync += q.eq(Mux(self.valid, operand, 0))
        return q
