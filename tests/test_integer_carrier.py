"""IntTensor: quantization with the exponent of least error, addition on a common exponent, bounds that hold."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest
import torch
from torch import Tensor

import subbyte as sb
from subbyte import integer, ops
from subbyte.integer_only import carrier, operand
from subbyte.integer_only.carrier import LIMIT, IntTensor
from subbyte.integer_only.operand import Form, Memory
from subbyte.numerics import IntFormat

S4, U4, S8 = IntFormat(4), IntFormat(4, signed=False), IntFormat(8)


def tensor(codes: list[int] | Tensor, exponent: int = 0, bound: int | None = None) -> IntTensor:
    t = torch.as_tensor(codes, dtype=torch.int32)
    e = torch.tensor(exponent, dtype=torch.int32)
    return IntTensor(t, e, bound or max(1, int(t.abs().max())))


def values(t: IntTensor) -> list[Fraction]:
    return [int(c) * Fraction(2) ** int(t.exponent) for c in t.codes.flatten()]


def bell(n: int, channels: int = 8) -> Tensor:
    x = torch.randn(n, channels, generator=torch.Generator().manual_seed(0))
    return (x * 100_000).round().to(torch.int32)


@pytest.mark.parametrize(("fmt", "x"), [(S4, bell(4000)), (U4, bell(4000).clamp(min=0)), (S4, bell(2)), (S4, bell(0))])
def test_the_exponent_of_few_bits_has_the_least_error_of_four(fmt: IntFormat, x: Tensor) -> None:
    t = tensor(x, bound=1 << 24) if x.numel() else IntTensor(x, torch.tensor(0, dtype=torch.int32), 1)
    q = operand.quantize(t, Form(fmt))
    shift = int(q.exponent)
    largest = int(x.abs().max()) if x.numel() else 0
    top = int(integer.shift_to_fit(torch.tensor(largest), fmt))

    def error(n: int) -> int:
        codes = integer.right_nearest(x.long(), torch.tensor(n)).clamp(fmt.qmin, fmt.qmax)
        return int((x.long() - (codes << n)).square().sum())

    assert top - 3 <= shift <= top
    # every element is in the sample; each lost at most 2 of its 19 bits there, a 2^-15 of the largest
    best = min(error(n) for n in range(max(0, top - 3), top + 1))
    assert error(shift) <= best * 1.001
    if x.numel() > 100:
        assert shift < top  # a bell's range ends below its largest element


def memory(exponent: int | None = None, training: bool = True) -> Memory:
    buffer = Memory.empty() if exponent is None else torch.tensor(exponent, dtype=torch.int32)
    return Memory(buffer, training)


def test_a_remembered_exponent_stays_while_it_serves_and_rules_in_eval_mode() -> None:
    t = tensor(bell(4000), 5, bound=1 << 24)
    best = int(operand.quantize(t, Form(S4)).exponent)
    errors = {
        e: int((t.codes.long() - (integer.right_nearest(t.codes.long(), torch.tensor(e - 5)).clamp(-7, 7) << (e - 5)))
               .square().sum())
        for e in range(best - 1, best + 3)
    }  # fmt: skip
    new = memory()
    assert operand.quantize(t, Form(S4), memory=new).exponent == best
    assert new.exponent == best
    for e, error in errors.items():
        asked = memory(e)
        got = int(operand.quantize(t, Form(S4), memory=asked).exponent)
        assert got == (e if 2 * error <= 3 * errors[best] else best)
        assert asked.exponent == got
    assert {2 * errors[e] <= 3 * errors[best] for e in errors if e != best} == {False}
    either = 0  # of bells between one octave and the next, two exponents are about as good for some
    for sixteenths in range(8, 17):
        near = tensor(bell(4000) * sixteenths // 16, 5, bound=1 << 24)
        either += len({int(operand.quantize(near, Form(S4), memory=memory(e)).exponent) for e in (best - 1, best)}) == 2
    assert 0 < either < 9
    for e in (best - 3, best + 9, -40, 60):
        asked = memory(e, training=False)
        q = operand.quantize(t, Form(S4), memory=asked)
        assert q.exponent == min(max(e, 5), 5 + ops.SUM_BITS)  # no finer than the codes that come in
        assert asked.exponent == e
        shifted = integer.right_nearest(t.codes.long(), q.exponent.long() - 5).clamp(-7, 7)
        assert torch.equal(q.codes.long(), shifted)


@pytest.mark.parametrize("x", [bell(0), torch.zeros(4, 4, dtype=torch.int32)])
def test_what_has_no_scale_is_not_remembered(x: Tensor) -> None:
    for asked in (memory(), memory(3)):
        before = int(asked.exponent)
        operand.quantize(IntTensor(x, torch.tensor(0, dtype=torch.int32), 1), Form(S4), memory=asked)
        assert asked.exponent == before
    lost = IntTensor(bell(9), torch.tensor(integer.NOT_FINITE, dtype=torch.int32), 1 << 24)
    for training in (True, False):
        asked = memory(3, training)
        assert operand.quantize(lost, Form(S4), memory=asked).exponent > integer.NOT_FINITE >> 1
        assert asked.exponent == 3


def test_eight_bits_and_gradients_are_not_clipped() -> None:
    t = tensor(bell(100), bound=1 << 24)
    for fmt, stream in ((S8, None), (S4, torch.tensor(3))):
        q = operand.quantize(t, Form(fmt), stream)
        largest = int(t.codes.abs().max())
        assert fmt.qmax << (int(q.exponent) - 1) < largest <= fmt.qmax << int(q.exponent)


def test_a_range_that_is_halved_clips_what_lies_beyond() -> None:
    x = torch.tensor([[56 << 10, 7 << 5, 3], [-(20 << 10), 5, -7]], dtype=torch.int32)
    whole, half = (operand.quantize(tensor(x, 4), Form(S4, channels=9, halvings=n), torch.tensor(1)) for n in (0, 1))
    assert half.exponent == whole.exponent - 1 == 4 + 13 - 1
    assert whole.codes[0, 0] == half.codes[0, 0] == 7
    assert half.codes[1, 0] in (-5, -6)
    assert whole.codes[1, 0] in (-2, -3)
    assert half.shift is not None
    assert half.shift.flatten().tolist() == [0, 8, 8]


def test_groups_take_the_finest_exponent_that_clips_nothing() -> None:
    x = torch.tensor([[7 << 10, 7 << 5, 3, 0], [-(7 << 10), 5, -7, 0]], dtype=torch.int32)
    q = operand.quantize(tensor(x, 4), Form(S4, channels=9), torch.tensor(1))
    assert q.shift is not None
    assert q.shift.flatten().tolist() == [0, 5, 8, 8]
    assert q.exponent == 14
    assert q.codes[:, :2].tolist() == [[7, 7], [-7, q.codes[1, 1].item()]]


@pytest.mark.parametrize("form", [Form(S4), Form(S4, channels=9), Form(S4, tokens=5), Form(S4, tokens=3, block=16)])
def test_packing_is_undone(form: Form) -> None:
    x = bell(5) >> torch.tensor([0, 1, 3, 5, 9]).view(5, 1)
    q = operand.quantize(tensor(x, bound=1 << 24), form)
    packed = q.pack()
    assert packed[0].numel() == (24 if form.block else 20)  # the last block is half full
    assert [t.numel() for t in packed[1:]] == ([2] if form.tokens == 5 else [1] if form.block else [])
    again = dataclasses.replace(q, codes=q.codes[:0]).unpack(packed, q.codes.shape)
    assert torch.equal(again.codes, q.codes)
    assert again.codes.dtype == q.codes.dtype


@pytest.mark.parametrize(
    ("a", "b"), [((5, 0), (3, 4)), ((LIMIT, 0), (LIMIT, 0)), ((1, -40), (LIMIT, 10)), ((0, 0), (7, -3))]
)
def test_a_sum_is_exact_to_its_last_unit(a: tuple[int, int], b: tuple[int, int]) -> None:
    x, y = tensor([a[0], -a[0]], a[1]), tensor([b[0], b[0]], b[1])
    total = carrier.add(x, y)
    assert total.codes.abs().max() <= LIMIT == total.bound
    unit = Fraction(2) ** int(total.exponent)
    for got, p, q in zip(values(total), values(x), values(y)):
        assert abs(got - p - q) <= unit  # half a unit for each operand
    assert unit <= max(abs(v) for v in (*values(x), *values(y))) / 2**28


def test_wide_sums_are_carried_in_31_bits() -> None:
    sums = torch.tensor([(1 << 40) - 1, -(1 << 40) + 1, 12345])
    t = carrier.carry(sums, torch.tensor(0, dtype=torch.int32), 1 << 40)
    assert t.codes.dtype == torch.int32
    assert t.codes.abs().max() <= t.bound <= LIMIT
    assert [round(v / 1024) for v in sums.tolist()] == t.codes.tolist()
    assert t.exponent == 10


@pytest.mark.parametrize("n", [1, 2, 3, 49, 64, 1000, 65_537])
def test_a_reciprocal_has_15_bits(n: int) -> None:
    factor, bits = carrier.reciprocal(n)
    assert factor < 1 << 16
    assert abs(Fraction(factor, 1 << bits) * n - 1) <= Fraction(1, 1 << 14)
    if n & (n - 1) == 0:
        assert factor << 0 == (1 << bits) // n


@pytest.mark.parametrize(
    ("quantizer", "shape"),
    [
        (sb.TokenShiftQuant(4, groups=3), (6, 8, 5, 5)),
        (sb.TokenShiftQuant(4, signed=False, groups=5), (90, 8)),
        (sb.BlockShiftQuant(4, groups=3, block=8), (5, 3, 3, 3)),
        (sb.BlockShiftQuant(3, groups=2, block=8), (16, 24)),
    ],
)
def test_tokens_and_blocks_have_the_scales_of_their_quantizer_where_it_is_a_power_of_two(quantizer, shape) -> None:
    """Where max |x| = Q 2^n, so that no base is between two powers of two, the codes are those of the quantizer."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-3000, 3000, shape, generator=g) >> torch.randint(
        0, 9, (shape[0], *[1] * (len(shape) - 1)), generator=g
    )
    top = quantizer.format.qmax << 10
    x = x.clamp(0 if not quantizer.signed else -top, top)
    x.view(-1)[3] = top
    want = quantizer(x.float())
    got = operand.quantize(tensor(x.int(), 2), Form.of(quantizer), memory=memory(12, training=False))
    assert got.exponent + quantizer.top == 2 + 10
    assert got.format == want.format
    assert torch.equal(got.codes, want.codes)


def test_a_base_below_the_range_is_chosen_for_tokens_too() -> None:
    x = bell(4000, 3)
    x[0, 0] = 1 << 23
    t, form = tensor(x, bound=1 << 24), Form(S4, tokens=3)
    fits = operand.quantize(t, form, memory=memory(int(integer.shift_to_fit(x.abs().max().long(), S4)), training=False))

    def error(q: operand.Operand) -> int:
        return int((x.long() - (q.codes.long() << int(q.exponent))).square().sum())

    best = operand.quantize(t, form)
    assert best.exponent < fits.exponent
    assert error(best) < 0.8 * error(fits)
    again = memory()
    assert operand.quantize(t, form, memory=again).exponent == best.exponent == again.exponent - 2
