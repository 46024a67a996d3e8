"""An output-stationary array of R x C processing elements, operands broadcast along rows and columns.

Every cycle is a SLOT: operands for one k (or one vector of `lanes`) with its control. A slot without `valid` multiplies
zeros, which is how a pipeline pauses. R slots with `drain` (and no `valid`) empty the array through its columns, last
row first, and leave zeros behind: the next product may follow in the next slot.

    a[r, lane], b[c, lane], valid, double, left, drain  ->  out[c] with out_valid, `latency` slots later
    acc[r, c] = sum over valid slots of  a[r] b[c] 2^left
"""

from __future__ import annotations

from amaranth.hdl import Module, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .element import ProcessingElement, delayed, stages
from .spec import MAX_SIDE, BoundError, Spec


def slot_ports(spec: Spec, rows: int, cols: int) -> dict:
    """The ports that every array has, whatever it is made of."""
    if not (1 <= rows <= MAX_SIDE and 1 <= cols <= MAX_SIDE):
        raise BoundError(f"an array of {rows} x {cols}: 1 to {MAX_SIDE} each way")
    return {
        "a": In(data.ArrayLayout(signed(spec.a_bits), rows * spec.lanes)),
        "b": In(data.ArrayLayout(signed(spec.b_bits), cols * spec.lanes)),
        "valid": In(1),
        "double": In(1),
        "left": In(spec.left_bits),
        "drain": In(1),
        "out": Out(data.ArrayLayout(signed(spec.acc_bits), cols)),
        "out_valid": Out(1),
    }


class Array(wiring.Component):
    """rows x cols elements of one Spec. a[r * lanes + lane], b[c * lanes + lane]."""

    def __init__(self, spec: Spec, rows: int = 8, cols: int = 8) -> None:
        self.spec, self.rows, self.cols = spec, rows, cols
        super().__init__(slot_ports(spec, rows, cols))

    @property
    def edge(self) -> int:
        """Registers at the array's edge: one, and one more behind the shifter of "folded"."""
        return 1 + (self.spec.variant == "folded" and self.spec.groups > 1)

    @property
    def latency(self) -> int:
        """Slots from an operand to the cycle in which acc is being updated with it; also from drain to out_valid."""
        return self.edge + stages(self.spec)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec, lanes = self.spec, self.spec.lanes
        valid = self.valid
        if self.edge == 2:
            a_edge = [_masked(m, self.a[i], self.valid, f"a{i}_in") for i in range(self.rows)]
            a_edge = [delayed(m, a, 1, f"a{i}") for i, a in enumerate(a_edge)]
            b_in = [_masked(m, self.b[i], valid, f"b{i}_in") for i in range(self.cols)]
            left = delayed(m, self.left, 1, "left_in")
            b_edge = []
            for i, b in enumerate(b_in):
                q = Signal(signed(spec.element_b_bits), name=f"b{i}_folded")
                m.d.sync += q.eq(b << left)
                b_edge.append(q)
        else:
            a_edge = [_masked(m, self.a[i], valid, f"a{i}_in") for i in range(self.rows * lanes)]
            b_edge = [_masked(m, self.b[i], valid, f"b{i}_in") for i in range(self.cols * lanes)]
        double = delayed(m, self.double, self.edge, "double") if spec.variant == "horner" else self.double
        left = delayed(m, self.left, self.edge, "left") if spec.variant in ("product", "tree") else self.left
        drain = delayed(m, self.drain, self.latency, "drain")
        above: list[Value] = [Signal(signed(spec.acc_bits), name=f"zero{c}") for c in range(self.cols)]
        for r in range(self.rows):
            for c in range(self.cols):
                element = ProcessingElement(spec, registered=False)
                m.submodules[f"pe_{r}_{c}"] = element
                m.d.comb += [element.double.eq(double), element.left.eq(left), element.drain.eq(drain)]
                m.d.comb += element.d_in.eq(above[c])
                for lane in range(lanes):
                    m.d.comb += element.a[lane].eq(a_edge[r * lanes + lane])
                    m.d.comb += element.b[lane].eq(b_edge[c * lanes + lane])
                above[c] = element.acc
        for c in range(self.cols):
            m.d.comb += self.out[c].eq(above[c])
        m.d.comb += self.out_valid.eq(drain)
        return m


def _masked(m: Module, v: Value, valid: Value, name: str) -> Signal:
    """A register of v that is 0 where valid is not: the synchronous reset of its flip-flops, no LUT."""
    q = Signal(signed(len(v)), name=name)
    with m.If(valid):
        m.d.sync += q.eq(v)
    with m.Else():
        m.d.sync += q.eq(0)
    return q
