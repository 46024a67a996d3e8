"""Threefry-2x32 with 13 rounds, as numerics.threefry2x32: one 64-bit draw a cycle, a register after each round.

    counter (low, high), key (low, high) -> words 0, 1, `LATENCY` cycles later. The key must not change under way.
Per round: x0 += x1, x1 = rotl(x1, r) ^ x0; after every fourth round the key schedule is added.
"""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .. import numerics

LATENCY = numerics.THREEFRY_ROUNDS + 1


class Threefry(wiring.Component):
    """Fully pipelined: 13 stages of one 32-bit add and one xor, 64 bits of state between them."""

    def __init__(self) -> None:
        inputs = ("counter_low", "counter_high", "key_low", "key_high")
        super().__init__({**dict.fromkeys(inputs, In(32)), **dict.fromkeys(("word0", "word1"), Out(32))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        parity = Signal(32)
        m.d.comb += parity.eq(self.key_low ^ self.key_high ^ numerics._THREEFRY_PARITY)
        key = (self.key_low, self.key_high, parity)
        x0, x1 = Signal(32, name="x0_start"), Signal(32, name="x1_start")
        m.d.sync += [x0.eq(self.counter_low + key[0]), x1.eq(self.counter_high + key[1])]
        rotations = numerics._THREEFRY_ROTATIONS
        for i in range(numerics.THREEFRY_ROUNDS):
            sum_, mixed = Signal(32, name=f"sum{i}"), Signal(32, name=f"mixed{i}")
            m.d.comb += [sum_.eq(x0 + x1), mixed.eq(x1.rotate_left(rotations[i % len(rotations)]) ^ sum_)]
            x0, x1 = Signal(32, name=f"x0_{i}"), Signal(32, name=f"x1_{i}")
            if i % 4 == 3:
                j = i // 4 + 1
                m.d.sync += [x0.eq(sum_ + key[j % 3]), x1.eq(mixed + key[(j + 1) % 3] + j)]
            else:
                m.d.sync += [x0.eq(sum_), x1.eq(mixed)]
        m.d.comb += [self.word0.eq(x0), self.word1.eq(x1)]
        return m
