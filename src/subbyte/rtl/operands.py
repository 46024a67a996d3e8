"""Operand buffers: two panels of A (one fills while the other is used) and all panels of B.

A panel is R rows (C columns) of one operand over the whole of K: `slots` words of R x lanes codes. A panels come in
order of rows, each once; B panels in order of columns, once a product, and stay.

    A word at {bank, slot}, B word at panel * slots + slot;   read: slot, bank, b_base  ->  a, b two cycles later
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..numerics import IntFormat
from .axi import stream_in
from .gemmconfig import GemmConfig

READ_LATENCY = 2
COUNT_BITS = 17


class OperandBuffers(wiring.Component):
    """Fills both buffers from their streams. clear: forget everything (start of a product).

    a_filled, b_filled: panels that have arrived since; a_release: a pulse, the oldest panel of A is free again.
    """

    def __init__(self, config: GemmConfig) -> None:
        self.config = config
        spec = config.spec
        super().__init__(
            {
                "clear": In(1),
                "active": In(1),
                "slots": In(range(config.max_slots + 1)),
                "m_panels": In(16),
                "n_panels": In(16),
                **stream_in("a", config.a_beat_bits),
                **stream_in("b", config.b_beat_bits),
                "a_filled": Out(COUNT_BITS),
                "b_filled": Out(COUNT_BITS),
                "a_release": In(1),
                "slot": In(range(config.max_slots)),
                "bank": In(1),
                "b_base": In(range(config.max_panels * config.max_slots)),
                "a_word": Out(data.ArrayLayout(signed(spec.a_bits), config.rows * spec.lanes)),
                "b_word": Out(data.ArrayLayout(signed(spec.b_bits), config.cols * spec.lanes)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c, spec = self.config, self.config.spec
        bank_depth = 1 << (c.max_slots - 1).bit_length()
        a_width, b_width = c.rows * spec.lanes * spec.a.bits, c.cols * spec.lanes * spec.b.bits
        a_memory = Memory(shape=a_width, depth=2 * bank_depth, init=[])
        b_memory = Memory(shape=b_width, depth=max(2, c.max_panels * c.max_slots), init=[])
        m.submodules.a_memory, m.submodules.b_memory = a_memory, b_memory
        a_write, a_read = a_memory.write_port(), a_memory.read_port()
        b_write, b_read = b_memory.write_port(), b_memory.read_port()

        # A: up to two panels ahead of those released.
        a_at, a_bank, held = Signal(range(max(2, c.max_slots))), Signal(), Signal(2)
        a_last, a_take, a_done = Signal(), Signal(), Signal()
        m.d.comb += [a_last.eq(a_at == self.slots - 1), a_take.eq(self.a_tvalid & self.a_tready)]
        m.d.comb += [self.a_tready.eq(self.active & (held != 2) & (self.a_filled != self.m_panels))]
        m.d.comb += [a_write.addr.eq(Cat(a_at[: (bank_depth - 1).bit_length()], a_bank)), a_write.en.eq(a_take)]
        m.d.comb += [a_write.data.eq(self.a_tdata), a_done.eq(a_take & a_last)]
        with m.If(a_take):
            m.d.sync += a_at.eq(a_at + 1)
        with m.If(a_done):
            m.d.sync += [a_at.eq(0), a_bank.eq(~a_bank), self.a_filled.eq(self.a_filled + 1)]
        m.d.sync += held.eq(held + a_done - self.a_release)

        b_at, b_address = Signal(range(max(2, c.max_slots))), Signal(range(max(2, c.max_panels * c.max_slots)))
        b_take = Signal()
        m.d.comb += [b_take.eq(self.b_tvalid & self.b_tready)]
        m.d.comb += [self.b_tready.eq(self.active & (self.b_filled != self.n_panels))]
        m.d.comb += [b_write.addr.eq(b_address), b_write.en.eq(b_take), b_write.data.eq(self.b_tdata)]
        with m.If(b_take):
            m.d.sync += [b_at.eq(b_at + 1), b_address.eq(b_address + 1)]
            with m.If(b_at == self.slots - 1):
                m.d.sync += [b_at.eq(0), self.b_filled.eq(self.b_filled + 1)]

        with m.If(self.clear):
            m.d.sync += [a_at.eq(0), a_bank.eq(0), held.eq(0), self.a_filled.eq(0)]
            m.d.sync += [b_at.eq(0), b_address.eq(0), self.b_filled.eq(0)]

        # Read: an address register, then the memory's own.
        a_address = Signal.like(a_read.addr)
        m.d.sync += [a_address.eq(Cat(self.slot[: (bank_depth - 1).bit_length()], self.bank))]
        b_read_address = Signal.like(b_read.addr)
        m.d.sync += b_read_address.eq(self.b_base + self.slot)
        m.d.comb += [a_read.addr.eq(a_address), b_read.addr.eq(b_read_address)]
        m.d.comb += [a_read.en.eq(1), b_read.en.eq(1)]
        for i in range(c.rows * spec.lanes):
            m.d.comb += self.a_word[i].eq(_code(a_read.data, i, spec.a))
        for i in range(c.cols * spec.lanes):
            m.d.comb += self.b_word[i].eq(_code(b_read.data, i, spec.b))
        return m


def _code(word: Value, i: int, fmt: IntFormat) -> Value:
    """Code i of a packed word, as a signed number: an unsigned format gains a zero on top."""
    raw = word[i * fmt.bits : (i + 1) * fmt.bits]
    return raw.as_signed() if fmt.signed else Cat(raw, Const(0, 1)).as_signed()
