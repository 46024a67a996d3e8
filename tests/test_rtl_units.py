"""The arithmetic units against Python's integers: random, extremes, headroom at the bound and one beyond it."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("amaranth", reason="the circuits need Amaranth: pip install 'subbyte[rtl]'")

from amaranth.sim import Simulator

from rtl_slots import product, reduction, run, schedule
from subbyte.numerics import IntFormat, accumulator_bits
from subbyte.rtl import units
from subbyte.rtl.units import BoundError, Spec, chunk_units, spec_for

U5, S3 = IntFormat(5, False), IntFormat(3)


def check_multiplier(a_bits, b_bits, style, pairs):
    dut = units.multiplier(a_bits, b_bits, style)

    async def bench(ctx):
        for a, b in pairs:
            ctx.set(dut.a, a)
            ctx.set(dut.b, b)
            await ctx.delay(1e-9)
            assert ctx.get(dut.product) == a * b, (a, b)

    simulator = Simulator(dut)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize(("a_bits", "b_bits"), [(2, 2), (3, 3), (4, 4), (5, 4), (4, 7)])
def test_booth_equals_the_product_for_all_operands(a_bits, b_bits):
    everything = [
        (a, b) for a in range(-(1 << a_bits - 1), 1 << a_bits - 1) for b in range(-(1 << b_bits - 1), 1 << b_bits - 1)
    ]
    check_multiplier(a_bits, b_bits, "booth", everything)


@pytest.mark.parametrize(("a_bits", "b_bits"), [(6, 6), (7, 7), (8, 8), (9, 8), (9, 15)])
def test_booth_of_wide_operands(a_bits, b_bits):
    rng = random.Random(a_bits * b_bits)

    def values(bits):
        top = 1 << bits - 1
        return [-top, -top + 1, -1, 0, 1, top - 1] + [rng.randrange(-top, top) for _ in range(12)]

    check_multiplier(a_bits, b_bits, "booth", [(a, b) for a in values(a_bits) for b in values(b_bits)])


ARRAYS = [
    spec_for(2),
    spec_for(3, 2, "horner"),
    spec_for(4, 4, "horner"),
    spec_for(5, 8, "horner"),
    spec_for(6, 4, "horner", multiplier="inferred"),
    spec_for(7, 1, "horner"),
    spec_for(8, 4, "horner", lanes=2),
    spec_for(4, 4, "folded"),
    spec_for(8, 8, "folded"),
    spec_for(6, 4, "product"),
    spec_for(6, 4, "tree", lanes=4),
    spec_for(4, 1, "tree", lanes=2),
    spec_for(8, lanes=4),
    Spec(U5, S3, 4, "horner"),
    Spec(S3, U5, 3, "folded"),
]


@pytest.mark.parametrize("spec", ARRAYS, ids=lambda s: f"{s.variant}-{s.a}{s.b}-g{s.groups}-l{s.lanes}")
def test_array_equals_integers_twice_in_a_row(spec):
    rng = random.Random(1)
    dut = units.array(spec, 2, 3)
    slots, want = [], []
    for k in (17, 5):
        operands = reduction(spec, 2, 3, k, rng)
        slots += schedule(spec, *operands, drains=2)
        want += product(spec, 2, 3, *operands)[::-1]
    assert run(dut, slots) == want


@pytest.mark.parametrize("variant", ["plain", "horner", "folded", "product"])
def test_headroom_at_the_bound_and_one_beyond(variant):
    groups = 1 if variant == "plain" else 3
    spec = spec_for(3, groups, variant, acc_bits=12)
    rng = random.Random(0)
    k = spec.max_k
    assert accumulator_bits(spec.a, spec.b, k, groups - 1) == 12
    assert accumulator_bits(spec.a, spec.b, k + 1, groups - 1) == 13
    for length in (k, k + 1):
        operands = reduction(spec, 1, 1, length, rng, extreme=True)
        (want,) = product(spec, 1, 1, *operands)[0]
        got = run(units.array(spec, 1, 1), schedule(spec, *operands, drains=1))[0][0]
        assert (got == want) is (length == k)
        assert (got - want) % (1 << 12) == 0  # it wraps, and nothing else
    with pytest.raises(BoundError, match=f"K is 1 to {k}"):
        spec.require_k(k + 1)


TILES = [spec_for(4), spec_for(6, 4, "folded"), spec_for(6, 3, "horner"), Spec(U5, IntFormat(6), 2, "folded")]


@pytest.mark.parametrize("spec", TILES, ids=lambda s: f"{s.variant}-{s.a}{s.b}-g{s.groups}")
def test_dsp_tile_equals_integers_over_chunks(spec):
    """Two results, each of two chunks; a chunk of extremes fills the low field to its bound."""
    rng, rows, cols = random.Random(2), 4, 2
    slots, want = [], []
    for _ in range(2):
        total = [[0] * cols for _ in range(rows)]
        for chunk in range(2):
            k = min(20, chunk_units(spec) >> (spec.groups - 1))
            operands = reduction(spec, rows, cols, k, rng, extreme=chunk == 0)
            slots += schedule(spec, *operands, drains=rows // 2, alone=True, fresh=chunk == 0, last=chunk == 1)
            part = product(spec, rows, cols, *operands)
            total = [[x + y for x, y in zip(p, q, strict=True)] for p, q in zip(total, part, strict=True)]
        want += [[total[2 * i + j][c] for c in range(cols) for j in (0, 1)] for i in reversed(range(rows // 2))]
    assert run(units.dsp_tile(spec, rows, cols, primitive=False), slots) == want


def test_dsp_tile_chunk_bound_and_one_beyond():
    spec = spec_for(6, 4, "folded")
    most = chunk_units(spec) >> (spec.groups - 1)
    assert (chunk_units(spec), most) == (272, 34)
    for k in (most, most + 1):
        a, b = [[31, 31]] * k, [[31]] * k
        left = [spec.groups - 1] * k
        got = run(units.dsp_tile(spec, 2, 1, primitive=False), schedule(spec, a, b, left, drains=1, fresh=1, last=1))
        assert (got == [[31 * 31 * 8 * k] * 2]) is (k == most)


@pytest.mark.parametrize(
    ("make", "bound"),
    [
        (lambda: spec_for(9), "2 to 8 bits"),
        (lambda: spec_for(6, 9, "horner"), "1 to 8"),
        (lambda: spec_for(6, 4, "plain"), "1 group"),
        (lambda: spec_for(6, 4, "diagonal"), "plain, horner, folded, product, tree"),
        (lambda: spec_for(6, 4, "folded", lanes=2), "1 lane"),
        (lambda: spec_for(6, 4, "tree", lanes=3), "power of two"),
        (lambda: spec_for(8, 8, "horner", acc_bits=20), "needs 22 for one step"),
        (lambda: spec_for(8, acc_bits=49), "48 is the most"),
        (lambda: units.dsp_tile(spec_for(8, 4, "folded")), "a chunk holds 4 units"),
        (lambda: units.dsp_tile(spec_for(6), rows=3), "3 rows is odd"),
        (lambda: units.array(spec_for(6), 65, 1), "1 to 64"),
    ],
)
def test_what_a_unit_cannot_hold_is_refused_with_the_bound(make, bound):
    with pytest.raises(ValueError, match=bound):
        make()
