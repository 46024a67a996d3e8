"""Slots for the arrays: schedules of every variant, driven through Amaranth's simulator, for test_rtl_units.py."""

from __future__ import annotations

import random

from amaranth.sim import Simulator

CONTROLS = ("valid", "double", "left", "drain", "fresh", "last")


def reduction(spec, rows, cols, k, rng, extreme=False):
    """k slots of operands, `lanes` products each, with left shifts in the order that the variant wants."""

    def code(fmt, top):
        return top if extreme else rng.choice([fmt.qmin, fmt.qmax, rng.randint(fmt.qmin, fmt.qmax)])

    a = [[code(spec.a, spec.a.qmax) for _ in range(rows * spec.lanes)] for _ in range(k)]
    b = [
        [code(spec.b, spec.b.qmin if spec.b.signed else spec.b.qmax) for _ in range(cols * spec.lanes)]
        for _ in range(k)
    ]
    left = [spec.groups - 1 if extreme else rng.randrange(spec.groups) for _ in range(k)]
    return a, b, sorted(left, reverse=True) if spec.variant == "horner" else left


def product(spec, rows, cols, a, b, left):
    """acc[r][c] in Python's own integers."""
    n = spec.lanes
    return [
        [
            sum(ak[r * n + i] * bk[c * n + i] << e for ak, bk, e in zip(a, b, left, strict=True) for i in range(n))
            for c in range(cols)
        ]
        for r in range(rows)
    ]


def schedule(spec, a, b, left, drains, alone=False, **at_drain):
    """The slots of one reduction: doublings at group boundaries (Horner), then the drains.

    alone: a doubling takes a slot of its own, as in a DSP; otherwise only where several meet.
    """
    slots, before = [], left[0]
    for ak, bk, e in zip(a, b, left, strict=True):
        doublings = before - e if spec.variant == "horner" else 0
        slots += [{"double": 1}] * (doublings if alone else max(0, doublings - 1))
        slots.append({"valid": 1, "a": ak, "b": bk, "left": e, "double": int(doublings > 0 and not alone)})
        before = e
    slots += [{"double": 1}] * (before if spec.variant == "horner" else 0)
    return slots + [{"drain": 1, **at_drain}] * drains


def run(dut, slots):
    """Drive the slots; -> out of every cycle with out_valid. Idle slots carry garbage, which valid must mask."""
    got = []
    garbage = random.Random(0)

    async def bench(ctx):
        for slot in slots + [{}] * (dut.latency + 2):
            for name in CONTROLS:
                if hasattr(dut, name):
                    ctx.set(getattr(dut, name), int(slot.get(name, 0)))
            for name, fmt in (("a", dut.spec.a), ("b", dut.spec.b)):
                width = dut.rows * dut.spec.lanes if name == "a" else dut.cols * dut.spec.lanes
                idle = [garbage.randint(fmt.qmin, fmt.qmax) for _ in range(width)]
                ctx.set(getattr(dut, name), slot.get(name, idle))
            if ctx.get(dut.out_valid):
                got.append([ctx.get(v) for v in dut.out])
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    return got
