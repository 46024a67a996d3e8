"""The order of a product: which slot enters the array in which cycle, and with what control.

    for each panel of A: for each panel of B: one tile = its slots in order, then R drains

Horner reads k group by group, the largest left shift first. The index table that makes this possible without moving any
operand is built here from the stream of left shifts: one region for each group, slot numbers appended as they come.

    order[left * depth + count[left]++] = slot

At the first slot of each next group the accumulator doubles; a group without slots costs one cycle that only doubles,
groups above the largest used one cost nothing. Every other variant keeps the natural order and reads left[slot].

A DSP array (config.dsp) doubles in slots of their own, and its reduction is cut into chunks as dsptile.py asks: when
the units of 2^left would exceed the bound, what is left to double is doubled, R / 2 drains follow, the order goes on.
"""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from . import dspbounds
from .element import delayed
from .gemmconfig import GemmConfig
from .operands import COUNT_BITS


class Sequencer(wiring.Component):
    """start (a pulse) -> slots with control until the last tile has drained; `slot` and what follows belong together.

    grouped     left shifts come: `slots` of them on e; otherwise all are 0 and k runs in natural order
    credit      a place for one more tile behind the array: asked for before a tile drains, granted by tile_start
    a_release   the current panel of A is used up
    """

    def __init__(self, config: GemmConfig) -> None:
        self.config = config
        self.left_now = Signal(config.spec.left_bits)
        super().__init__(
            {
                "start": In(1),
                "slots": In(range(config.max_slots + 1)),
                "m_panels": In(16),
                "n_panels": In(16),
                "grouped": In(1),
                "e_valid": In(1),
                "e_left": In(config.spec.left_bits),
                "e_ready": Out(1),
                "a_filled": In(COUNT_BITS),
                "b_filled": In(COUNT_BITS),
                "a_release": Out(1),
                "credit": In(1),
                "tile_start": Out(1),
                "slot": Out(range(config.max_slots)),
                "bank": Out(1),
                "b_base": Out(range(config.max_panels * config.max_slots)),
                "valid": Out(1),
                "double": Out(1),
                "left": Out(config.spec.left_bits),
                "drain": Out(1),
                "fresh": Out(1),
                "last": Out(1),
            }
        )

    @property
    def horner(self) -> bool:
        return self.config.spec.variant == "horner" and self.config.spec.groups > 1

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c, groups = self.config, self.config.spec.groups
        slot_bits = max(1, (c.max_slots - 1).bit_length())
        counts = Array(Signal(range(c.max_slots + 1), name=f"count{g}") for g in range(groups))
        group = Signal(range(max(2, groups)))
        index = Signal(slot_bits)

        table_ready = self._load(m, counts, slot_bits, group, index)

        top = Signal.like(group)
        for g in range(1, groups):
            with m.If(counts[g] != 0):
                m.d.comb += top.eq(g)

        tile_m, tile_n = Signal(16), Signal(16)
        boundary = Signal()  # the next slot is the first of its group: double before it
        drained = Signal(range(max(2, c.drains)))
        bank, b_base = Signal(), Signal(self.b_base.shape())
        valid, double, drain, last = Signal(), Signal(), Signal(), Signal()
        empty, ends_group = Signal(), Signal()
        m.d.comb += [empty.eq(counts[group] == 0), ends_group.eq(empty | (index == counts[group] - 1))]

        # DSP arrays: a doubling has a slot of its own, and a chunk ends before its units of 2^left exceed the bound.
        units = dspbounds.chunk_units(c.spec)
        cost, used, pending = Signal(groups), Signal(range(units + 1)), Signal.like(group)
        hold, chunked = Signal(), Signal()
        if c.dsp:
            m.d.comb += cost.eq(1 << (group if self.horner else self.left_now))
            m.d.comb += hold.eq(~empty & (boundary | (used + cost > units)))

        with m.FSM():
            with m.State("IDLE"), m.If(self.start):
                m.d.sync += [tile_m.eq(0), tile_n.eq(0), bank.eq(0), b_base.eq(0)]
                m.next = "WAIT"
            with m.State("WAIT"):
                m.d.sync += [group.eq(top), index.eq(0), boundary.eq(0), drained.eq(0), used.eq(0), chunked.eq(0)]
                with m.If(table_ready & (self.a_filled > tile_m) & (self.b_filled > tile_n)):
                    m.next = "RUN"
            with m.State("RUN"):
                with m.If(hold):
                    m.d.comb += double.eq(boundary)
                    m.d.sync += [boundary.eq(0), pending.eq(group)]
                    with m.If(~boundary):
                        m.next = "FLUSH" if c.dsp else "RUN"
                with m.Else():
                    m.d.comb += [valid.eq(~empty), double.eq(boundary)]
                    m.d.sync += [index.eq(index + 1), boundary.eq(0), used.eq(used + cost)]
                    with m.If(ends_group):
                        m.d.sync += [index.eq(0), boundary.eq(1), group.eq(group - 1)]
                        with m.If(group == 0):
                            m.next = "DRAIN"
            if c.dsp:
                with m.State("FLUSH"):  # a chunk's sums leave in units of the smallest shift
                    with m.If((pending != 0) & int(self.horner)):
                        m.d.comb += double.eq(1)
                        m.d.sync += pending.eq(pending - 1)
                    with m.Else():
                        m.d.comb += drain.eq(1)
                        m.d.sync += drained.eq(drained + 1)
                        with m.If(drained == c.drains - 1):
                            m.d.sync += [drained.eq(0), used.eq(0), chunked.eq(1)]
                            m.next = "RUN"
            with m.State("DRAIN"):
                m.d.comb += last.eq(1)
                with m.If((drained != 0) | self.credit):
                    m.d.comb += [drain.eq(1), self.tile_start.eq(drained == 0)]
                    m.d.sync += drained.eq(drained + 1)
                    with m.If(drained == c.drains - 1):
                        m.d.sync += [tile_n.eq(tile_n + 1), b_base.eq(b_base + self.slots)]
                        m.next = "WAIT"
                        with m.If(tile_n == self.n_panels - 1):
                            m.d.sync += [tile_n.eq(0), b_base.eq(0), tile_m.eq(tile_m + 1), bank.eq(~bank)]
                            with m.If(tile_m == self.m_panels - 1):
                                m.next = "IDLE"
        panel_done = drain & (drained == c.drains - 1) & (tile_n == self.n_panels - 1)
        # Two cycles later its last read is over, whatever R is.
        m.d.comb += self.a_release.eq(delayed(m, panel_done, 2, "a_release"))
        m.d.comb += [self.fresh.eq(delayed(m, ~chunked, 1, "fresh")), self.last.eq(delayed(m, last, 1, "last"))]
        for out, v in ((self.valid, valid), (self.double, double), (self.drain, drain), (self.bank, bank)):
            m.d.comb += out.eq(delayed(m, v, 1, "aligned"))
        m.d.comb += self.b_base.eq(delayed(m, b_base, 1, "aligned"))
        return m

    def _load(self, m: Module, counts: Array, slot_bits: int, group: Signal, index: Signal) -> Signal:
        """Store the left shifts as they come; look up this cycle's slot (a cycle later). -> the table is complete."""
        c = self.config
        loaded = Signal(range(c.max_slots + 1))
        ready, take = Signal(), Signal()
        m.d.comb += ready.eq(~self.grouped | (loaded == self.slots))
        m.d.comb += [self.e_ready.eq(self.grouped & (loaded != self.slots)), take.eq(self.e_valid & self.e_ready)]
        natural = delayed(m, index, 1, "natural")
        grouped = self.config.spec.groups > 1
        if grouped:
            depth = 1 << slot_bits
            table = Memory(
                shape=slot_bits if self.horner else c.spec.left_bits,
                depth=depth << (c.spec.left_bits if self.horner else 0),
                init=[],
            )
            m.submodules += table
            write, read = table.write_port(), table.read_port()
            m.d.comb += [write.en.eq(take), read.en.eq(1)]
        if grouped and self.horner:
            at = Signal(slot_bits)
            m.d.comb += at.eq(counts[self.e_left])
            m.d.comb += [write.addr.eq(Cat(at, self.e_left)), write.data.eq(loaded)]
            m.d.comb += [read.addr.eq(Cat(index, group)), self.slot.eq(Mux(self.grouped, read.data, natural))]
        else:
            m.d.comb += self.slot.eq(natural)
        if grouped and not self.horner:
            m.d.comb += [write.addr.eq(loaded), write.data.eq(self.e_left), read.addr.eq(index)]
            m.d.comb += self.left.eq(Mux(self.grouped, read.data, 0))
            if c.dsp:
                ahead = table.read_port(domain="comb")
                m.d.comb += [ahead.addr.eq(index), self.left_now.eq(Mux(self.grouped, ahead.data, 0))]
        with m.If(take):
            m.d.sync += loaded.eq(loaded + 1)
            if self.horner:
                m.d.sync += counts[self.e_left].eq(counts[self.e_left] + 1)
        with m.If(self.start):
            m.d.sync += loaded.eq(0)
            for g in range(len(counts)):
                in_natural_order = (~self.grouped if self.horner else 1) if g == 0 else 0
                m.d.sync += counts[g].eq(Mux(in_natural_order, self.slots, 0))
        return ready
