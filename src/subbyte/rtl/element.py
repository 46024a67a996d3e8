"""Processing elements: one multiply-accumulate a cycle (or `lanes` of them), the accumulator doubling as drain chain.

    stage 0   a, b, left, double     the array's edge registers (a lone element has its own)
    stage 1   product                registered
    ...       sum of lanes, shift    only for lanes > 1 ("tree": the shift; "product": the shift)
    last      acc <= product + (drain ? d_in : double ? 2 acc : acc)

Draining adds the product as well, so that it costs no multiplexer after the adder: operands are 0 in those slots.
Why a shift is free in "horner": bit i of the sum is product[i] ^ mux(acc[i], acc[i-1], d_in[i]) with two selects, six
inputs, the one LUT6 that the plain element takes too; the carry cell's other input is product[i] itself.
"""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .multiplier import multiply
from .spec import Spec


class ProcessingElement(wiring.Component):
    """acc[t + latency] takes the slot of cycle t.

    a        lanes x signed(a_bits)             b     lanes x signed(element_b_bits)
    double   1: acc doubles before this slot's product is added (horner)
    left     this slot's left shift (product, tree)
    drain    1, together with zero operands: acc takes d_in; aligned with the last stage by whoever drives it
    d_in     the neighbour's accumulator        acc   this one

    registered: with input registers (a lone element); an array registers once at its edge instead.
    """

    def __init__(self, spec: Spec, registered: bool = True) -> None:
        self.spec, self.registered = spec, registered
        super().__init__(
            {
                "a": In(data.ArrayLayout(signed(spec.a_bits), spec.lanes)),
                "b": In(data.ArrayLayout(signed(spec.element_b_bits), spec.lanes)),
                "double": In(1),
                "left": In(spec.left_bits),
                "drain": In(1),
                "d_in": In(signed(spec.acc_bits)),
                "acc": Out(signed(spec.acc_bits)),
            }
        )

    @property
    def stages(self) -> int:
        """Registers between the (registered) operands and the accumulator's adder."""
        return stages(self.spec)

    @property
    def latency(self) -> int:
        """Cycles from an operand at the port to its product in acc."""
        return self.registered + self.stages + 1

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec = self.spec
        a, b, double, left = self.a, self.b, self.double, self.left
        if self.registered:
            ra, rb = Signal(self.a.shape(), name="a_q"), Signal(self.b.shape(), name="b_q")
            m.d.sync += [ra.eq(a), rb.eq(b)]
            a, b = ra, rb
            double, left = delayed(m, double, 1, "double_in"), delayed(m, left, 1, "left_in")
        products = []
        for i in range(spec.lanes):
            p = Signal(signed(spec.a_bits + spec.element_b_bits), name=f"p{i}")
            m.d.sync += p.eq(multiply(m, a[i], b[i], spec.multiplier, f"m{i}"))
            products.append(p)
        term: Value = _tree(m, products)
        if spec.variant in ("product", "tree") and spec.groups > 1:
            steps = 1 + _tree_levels(spec)
            shifted = Signal(signed(len(term) + spec.groups - 1), name="shifted")
            m.d.sync += shifted.eq(term << delayed(m, left, steps, "left"))
            term = shifted
        acc = Signal(signed(spec.acc_bits), name="acc_q")
        base: Value = acc
        if spec.variant == "horner" and spec.groups > 1:
            base = Mux(delayed(m, double, self.stages, "double"), acc << 1, acc)
        chosen = Signal(signed(spec.acc_bits))
        m.d.comb += chosen.eq(Mux(self.drain, self.d_in, base))
        m.d.sync += acc.eq(term + chosen)
        m.d.comb += self.acc.eq(acc)
        return m


def stages(spec: Spec) -> int:
    """Register stages of an element between its operands and the accumulator's adder."""
    shifts = spec.variant in ("product", "tree") and spec.groups > 1
    return 1 + _tree_levels(spec) + shifts


def _tree_levels(spec: Spec) -> int:
    return (spec.lanes - 1).bit_length()


def _tree(m: Module, terms: list[Signal]) -> Signal:
    """The sum of a power-of-two number of equally wide terms, a register after each level."""
    level = 0
    while len(terms) > 1:
        sums = []
        for i in range(0, len(terms), 2):
            s = Signal(signed(len(terms[i]) + 1), name=f"tree{level}_{i // 2}")
            m.d.sync += s.eq(terms[i] + terms[i + 1])
            sums.append(s)
        terms, level = sums, level + 1
    return terms[0]


def delayed(m: Module, v: Value, cycles: int, name: str) -> Value:
    """v, `cycles` registers later."""
    for i in range(cycles):
        q = Signal(v.shape(), name=f"{name}_d{i + 1}")
        m.d.sync += q.eq(v)
        v = q
    return v
