"""R x C multiply-accumulates on R C / 2 DSP48E1: two rows share one multiplier, and int accumulators catch its chunks.

    (a[2i+1] 2^S + a[2i]) b  =  a[2i+1] b 2^S  +  a[2i] b       S = 25 - a_bits: the pre-adder's width decides

P holds both sums: the low S bits the even row's, the rest the odd row's (plus 1 where the low one is negative). The low
field is exact while |sum| < 2^(S-1), so a reduction is cut into chunks with

    sum over the chunk of 2^left  <=  chunk_units = floor((2^(S-1) - 1) / (Qa Qb))

a bound on the schedule, not on the data. R / 2 drain slots end a chunk: the P cascade moves the sums down, and a row
pair a cycle is unpacked and added to accumulators in LUT RAM. `fresh` marks the slots that drain a result's first
chunk, `last` those of its final one: only these set out_valid.

    folded   b << left at the array's edge, once a column; any order
    horner   P + P in the DSP, in a slot of its own (a slot with double has no valid); k in group order
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from . import dsp48, dspbounds
from .array import slot_ports
from .dsp48 import Dsp48
from .dspbounds import field_bits
from .element import delayed
from .spec import Spec

EDGE = 1


class DspTile(wiring.Component):
    """The ports of Array, and fresh, last; out is a row PAIR: out[2c] the sum of the even row, out[2c+1] of the odd.

    valid, double and drain exclude each other. latency: slots from drain to its row pair at out, last pair first.
    primitive: DSP48E1 instances (synthesis), or their model (simulation).
    """

    def __init__(self, spec: Spec, rows: int = 8, cols: int = 8, primitive: bool = True) -> None:
        dspbounds.require(spec, rows)
        self.spec, self.rows, self.cols, self.primitive = spec, rows, cols, primitive
        ports = slot_ports(spec, rows, cols)
        ports |= {"fresh": In(1), "last": In(1), "out": Out(data.ArrayLayout(signed(spec.acc_bits), 2 * cols))}
        super().__init__(ports)

    @property
    def latency(self) -> int:
        return EDGE + dsp48.OPMODE_LEAD + 1

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec, s, pairs = self.spec, field_bits(self.spec), self.rows // 2
        a_edge, b_edge = [], []
        for r in range(self.rows):
            q = Signal(signed(spec.a_bits), name=f"a{r}_in")
            m.d.sync += q.eq(self.a[r])
            a_edge.append(q)
        for c in range(self.cols):
            q = Signal(signed(spec.element_b_bits), name=f"b{c}_in")
            m.d.sync += q.eq(self.b[c] << self.left if spec.variant == "folded" and spec.groups > 1 else self.b[c])
            b_edge.append(q)

        opmode = Signal(7)
        steps = EDGE + dsp48.OPMODE_LEAD
        valid, drain = delayed(m, self.valid, steps, "valid"), delayed(m, self.drain, steps, "drain")
        double: Value = Const(0, 1)
        if spec.variant == "horner" and spec.groups > 1:
            double = delayed(m, self.double, steps, "double")
        # HOLD, ADD, DOUBLE and DRAIN differ in single bits: no logic but an inverter (module dsp48 has the codes).
        m.d.comb += opmode.eq(Cat(valid, double, valid, Const(0, 1), drain, ~drain, Const(0, 1)))

        bottom = []
        for c in range(self.cols):
            cascade: Value = Const(0, signed(dsp48.P_BITS))
            for i in range(pairs):
                dsp = Dsp48(self.primitive)
                m.submodules[f"dsp_{i}_{c}"] = dsp
                m.d.comb += [dsp.d.eq(a_edge[2 * i]), dsp.a.eq(a_edge[2 * i + 1] << s), dsp.b.eq(b_edge[c])]
                m.d.comb += [dsp.opmode.eq(opmode), dsp.p_in.eq(cascade)]
                cascade = dsp.p_out
                p = dsp.p
            bottom.append(p)

        draining = delayed(m, drain, 1, "draining")
        fresh, last = (delayed(m, v, self.latency, n) for v, n in ((self.fresh, "fresh"), (self.last, "last")))
        pair = Signal(range(max(2, pairs)))
        with m.If(draining):
            m.d.sync += pair.eq(Mux(pair == pairs - 1, 0, pair + 1))
        for c, p in enumerate(bottom):
            self._accumulate(m, c, p, s, pair, draining, fresh)
        m.d.comb += self.out_valid.eq(draining & last)
        return m

    def _accumulate(self, m: Module, c: int, p: Signal, s: int, pair: Signal, draining: Value, fresh: Value) -> None:
        """Unpack column c's row pair and add it to its accumulators; the sum is also the output."""
        width = self.spec.acc_bits
        memory = Memory(shape=2 * width, depth=max(2, self.rows // 2), init=[])
        m.submodules[f"accumulators_{c}"] = memory
        write, read = memory.write_port(), memory.read_port(domain="comb")
        old, new = Signal(2 * width, name=f"old{c}"), Signal(2 * width, name=f"new{c}")
        low, high = Signal(signed(width), name=f"low{c}"), Signal(signed(width), name=f"high{c}")
        m.d.comb += [low.eq(p[:s].as_signed()), high.eq(p[s:].as_signed()), old.eq(Mux(fresh, 0, read.data))]
        with_carry = Signal(width + 1, name=f"carry{c}")
        m.d.comb += with_carry.eq(Cat(Const(1, 1), high) + Cat(p[s - 1], old[width:]))  # the low field's borrow
        m.d.comb += new.eq(Cat((old[:width] + low)[:width], with_carry[1:]))
        m.d.comb += [read.addr.eq(pair), write.addr.eq(pair), write.en.eq(draining), write.data.eq(new)]
        m.d.comb += [self.out[2 * c].eq(new[:width]), self.out[2 * c + 1].eq(new[width:])]
