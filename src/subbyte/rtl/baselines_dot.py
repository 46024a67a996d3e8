"""Dot-product units of `lanes` products a cycle, accumulated in FP32: MX blocks, float scales, fused floating point.

The integer units to compare with are ProcessingElement(Spec(lanes=...)): the same registers, adder tree and drain
chain. What a vector shares decides what comes after the tree:

    ShiftMM   one left shift                           (element.py, variant "tree")
    MX        one power of two, sum in FP32            ScaledDot, scales E8M0
    group     one float scale (the product of two)     ScaledDot, scales FP16
    float     nothing: each product is aligned first   FusedFloatDot

The FP32 accumulation is one unpipelined adder (about 9 ns of logic), which favours these units.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .baselines_float import (
    FP16,
    FP32,
    FloatFormat,
    add_with_carry,
    delayed,
    float_add,
    float_product,
    integer_to_float,
    lookup,
    named,
    registers,
)
from .baselines_models import MXFP4_VALUES, SCALE_BITS
from .multiplier import booth, multiply

GUARD_BITS = 4
"""Bits kept below the products' own when a fused unit aligns them."""


class VectorDot(wiring.Component):
    """acc += sum_i a[i] b[i] in FP32. acc[t + latency] holds the vectors of cycle t.

    a, b        lanes x bits            scale_a, scale_b  of this vector (where scale_bits > 0)
    drain, d_in as in every element: acc takes d_in
    """

    def __init__(self, lanes: int, bits: int, scale_bits: int = 0) -> None:
        self.lanes, self.bits, self.scale_bits = lanes, bits, scale_bits
        ports = {
            "a": In(lanes * bits),
            "b": In(lanes * bits),
            "drain": In(1),
            "d_in": In(FP32.width),
            "acc": Out(FP32.width),
        }
        if scale_bits:
            ports |= {"scale_a": In(scale_bits), "scale_b": In(scale_bits)}
        super().__init__(ports)

    @property
    def tree_levels(self) -> int:
        """Registers inside the adder tree."""
        return (self.lanes - 1).bit_length()

    @property
    def latency(self) -> int:
        """Cycles from the vectors at the port to their effect on acc."""
        raise NotImplementedError

    def split(self, operand: Value) -> list[Value]:
        """The lanes of an operand."""
        return [operand[i * self.bits : (i + 1) * self.bits] for i in range(self.lanes)]

    def accumulate(self, m: Module, term: Value, scale_exponent: Value) -> None:
        """acc + term * 2^scale_exponent: one register after the conversion, one for acc."""
        (number,) = registers(m, [integer_to_float(m, term, scale_exponent)])
        acc = Signal(FP32.width, name="acc_q")
        m.d.sync += acc.eq(Mux(self.drain, self.d_in, float_add(m, number, acc, FP32)))
        m.d.comb += self.acc.eq(acc)


def sum_of_signed(m: Module, magnitudes: list[Value], signs: list[Value]) -> Value:
    """sum of (-1)^sign * magnitude, a register after each level of the tree; -> signed.

    A negative term enters as its one's complement, and the ones still owed enter as carries of the adders: n - 1
    adders for n - 1 terms, while the first is negated outright. So negating costs one LUT row and not n.
    """
    width = len(magnitudes[0]) + 1
    terms: list[tuple[Value, Value | None]] = []
    for i, (magnitude, sign) in enumerate(zip(magnitudes, signs)):
        flipped = named(m, Cat(magnitude, Const(0, 1)) ^ sign.replicate(width), width)
        if i == 0:
            terms.append((named(m, add_with_carry(flipped, Const(0, width), sign), width), None))
        else:
            terms.append((flipped, sign))
    # Registers here are the products' own.
    terms = [(registers(m, [v])[0], None if s is None else registers(m, [s])[0]) for v, s in terms]
    while len(terms) > 1:
        sums: list[tuple[Value, Value | None]] = []
        width += 1
        for (left, owed_left), (right, owed_right) in zip(terms[::2], terms[1::2]):
            carry, owed = (owed_right, None) if owed_left is None else (owed_left, owed_right)
            assert carry is not None
            total = named(m, add_with_carry(Cat(left, left[-1]), Cat(right, right[-1]), carry), width)
            (total,) = registers(m, [total])
            sums.append((total, None if owed is None else registers(m, [owed])[0]))
        terms = sums
    return terms[0][0].as_signed()


def sum_of(m: Module, terms: list[Value]) -> Value:
    """The sum of equally wide signed terms, a register after each level."""
    while len(terms) > 1:
        sums: list[Value] = []
        for left, right in zip(terms[::2], terms[1::2]):
            total = Signal(signed(len(left) + 1))
            m.d.sync += total.eq(left.as_signed() + right.as_signed())
            sums.append(total)
        terms = sums
    return terms[0].as_signed()


class ScaledDot(VectorDot):
    """Integer (or FP4) elements with one scale for each vector of `lanes`, accumulated in FP32.

    elements  "int": two's complement of `bits`; "fp4": E2M1, whose product is a table of six input bits
    scales    "e8m0": powers of two (MX): exponents add; "fp16": floats, whose product (SCALE_BITS of it) multiplies the
              integer sum
    """

    def __init__(self, lanes: int, bits: int, elements: str = "int", scales: str = "e8m0") -> None:
        if elements not in ("int", "fp4") or scales not in ("e8m0", "fp16") or (elements == "fp4" and bits != 4):
            raise ValueError(f"no unit of {bits}-bit {elements} elements with {scales} scales")
        self.elements, self.scales = elements, scales
        super().__init__(lanes, bits, 8 if scales == "e8m0" else FP16.width)

    @property
    def point(self) -> int:
        """Fractional bits of an integer product: MX integers are 1.(bits - 2) fixed point, E2M1 counts in halves."""
        return 2 if self.elements == "fp4" else 2 * (self.bits - 2) if self.scales == "e8m0" else 0

    @property
    def latency(self) -> int:
        return 4 + self.tree_levels + (self.scales == "fp16")

    def elaborate(self, platform: object) -> Module:
        m = Module()
        a, b, scale_a, scale_b = registers(m, [self.a, self.b, self.scale_a, self.scale_b])
        pairs = list(zip(self.split(a), self.split(b)))
        if self.elements == "fp4":
            table = [MXFP4_VALUES[i % 8] * MXFP4_VALUES[i // 8] for i in range(64)]
            products = [named(m, lookup(named(m, Cat(x[:3], y[:3])), table, 8)) for x, y in pairs]
            total = sum_of_signed(m, products, [x[3] ^ y[3] for x, y in pairs])
        else:
            products = [multiply(m, x.as_signed(), y.as_signed(), "booth", f"m{i}") for i, (x, y) in enumerate(pairs)]
            total = sum_of(m, registers(m, products))
        if self.scales == "e8m0":
            exponent = Signal(signed(11))
            m.d.comb += exponent.eq(delayed(m, named(m, scale_a + scale_b), 1 + self.tree_levels) - (254 + self.point))
            self.accumulate(m, total, exponent)
        else:
            self._float_scale(m, total, scale_a, scale_b)
        return m

    def _float_scale(self, m: Module, total: Value, scale_a: Value, scale_b: Value) -> None:
        p = float_product(m, scale_a, scale_b, FP16, fabric=True, subnormals=False)
        significand, exponent_sum = registers(
            m, [p.significand[-SCALE_BITS:] & p.alive.replicate(SCALE_BITS), p.exponent]
        )
        factor = Signal(signed(SCALE_BITS + 1))
        m.d.comb += factor.eq(delayed(m, significand, self.tree_levels))
        (scaled,) = registers(m, [booth(m, total, factor, "scale")])
        exponent = Signal(signed(9))
        drop = 2 * FP16.fraction + 2 - SCALE_BITS
        offset = 2 * (FP16.bias + FP16.fraction) - drop
        m.d.comb += exponent.eq(delayed(m, exponent_sum, 1 + self.tree_levels) - offset)
        self.accumulate(m, scaled.as_signed(), exponent)


class FusedFloatDot(VectorDot):
    """Float products aligned to the largest exponent, added as integers, normalized once: the leanest float form.

    Subnormal operands are exact. Alignment truncates GUARD_BITS below the products. The exponent of a zero operand
    counts as that of a subnormal.
    """

    def __init__(self, lanes: int, fmt: FloatFormat) -> None:
        self.fmt = fmt
        super().__init__(lanes, fmt.width)

    @property
    def latency(self) -> int:
        return 6 + self.tree_levels

    def elaborate(self, platform: object) -> Module:
        m = Module()
        fmt = self.fmt
        a, b = registers(m, [self.a, self.b])
        products = [
            registers(m, [p.sign, p.exponent, p.significand])
            for x, y in zip(self.split(a), self.split(b))
            for p in [float_product(m, x, y, fmt, fabric=True, subnormals=True)]
        ]
        largest = [exponent for _, exponent, _ in products]
        while len(largest) > 1:
            largest = [named(m, Mux(x > y, x, y)) for x, y in zip(largest[::2], largest[1::2])]
        (top,) = registers(m, [largest[0]])
        magnitudes, signs = [], []
        for product in products:
            sign, exponent, significand = registers(m, product)
            distance = named(m, top - exponent, len(top))
            magnitudes.append(_align(m, Cat(Const(0, GUARD_BITS), significand), distance))
            signs.append(sign)
        total = sum_of_signed(m, magnitudes, signs)
        exponent = Signal(signed(11))
        offset = 2 * fmt.bias + 2 * fmt.fraction + GUARD_BITS
        m.d.comb += exponent.eq(delayed(m, top, 1 + self.tree_levels) - offset)
        self.accumulate(m, total, exponent)
        return m


def _align(m: Module, x: Value, distance: Value) -> Value:
    """x >> distance, for any distance."""
    stages = (len(x) - 1).bit_length()
    for k in range(min(stages, len(distance))):
        x = named(m, Mux(distance[k], x >> (1 << k), x), len(x))
    return named(m, Mux(distance[stages:].any(), 0, x), len(x)) if len(distance) > stages else x
