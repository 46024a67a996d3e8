"""int_matmul and matmul against numpy's int64, the four forms of ShiftMM against both. A (..., M, K), B (..., K, N)"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from subbyte import ops
from subbyte.numerics import IntFormat, accumulator_bits
from subbyte.ops import ContractError, exact, shiftmm
from subbyte.qtensor import QTensor

S2, S4, S6, S8 = (IntFormat(b) for b in (2, 4, 6, 8))
U4, U8 = IntFormat(4, signed=False), IntFormat(8, signed=False)
PAIRS = [(S4, S4), (U8, S8), (S8, S8), (S2, U4), (S6, S4), (U8, U8)]


@pytest.fixture(autouse=True, scope="module")
def _reference():
    with ops.use_backend("reference"):
        yield


def codes(rng, fmt: IntFormat, *shape: int, extremes: bool = False) -> torch.Tensor:
    pick = rng.choice([fmt.qmin, fmt.qmax], shape) if extremes else rng.integers(fmt.qmin, fmt.qmax + 1, shape)
    return torch.from_numpy(np.asarray(pick)).to(fmt.dtype)


def qtensor(rng, fmt: IntFormat, shape, shift_axis: int | None = None, top: int = 4, extremes: bool = False) -> QTensor:
    """Codes with scale 1 and, if asked, exponents 0..top along an axis."""
    c, one = codes(rng, fmt, *shape, extremes=extremes), torch.ones([1] * len(shape))
    if shift_axis is None:
        return QTensor(c, one, fmt)
    along = [1] * len(shape)
    along[shift_axis] = shape[shift_axis]
    e = torch.from_numpy(rng.integers(0, top + 1, along)).to(torch.uint8)
    return QTensor(c, one, fmt, e, top)


def shifted(q: QTensor) -> np.ndarray:
    """codes << (E - e) in int64."""
    left = 0 if q.shift is None else q.max_shift - q.shift.numpy().astype(np.int64)
    return q.codes.numpy().astype(np.int64) << left


def model(a: QTensor, b: QTensor) -> np.ndarray:
    return shifted(a) @ shifted(b)


def check(a: QTensor, b: QTensor) -> torch.Tensor:
    got = ops.matmul_accumulators(a, b)
    a, b = a.fold_shift(-1), b.fold_shift(-2)  # a single exponent, K = 1, belongs to the scale
    assert ops.last_kernel["int_matmul"] == "reference"
    wide = accumulator_bits(a.format, b.format, a.shape[-1], a.max_shift + b.max_shift) > 32
    assert got.dtype is (torch.int64 if wide else torch.int32)
    want = model(a, b)
    assert got.shape == want.shape
    assert np.array_equal(got.numpy(), want)
    return got


SHAPES = [
    *[((0, 3), (3, 2)), ((2, 0), (0, 3)), ((2, 3), (3, 0)), ((1, 1), (1, 1)), ((1, 17), (17, 1)), ((5, 64), (64, 7))],
    *[((33, 100), (100, 9)), ((2, 3, 8), (2, 8, 4)), ((2, 3, 5, 4), (2, 3, 4, 1)), ((0, 3, 4), (0, 4, 2))],
]


@pytest.mark.parametrize(("a_shape", "b_shape"), SHAPES)
def test_accumulators_equal_int64(a_shape, b_shape):
    rng = np.random.default_rng(0)
    for (fa, fb), extremes in itertools.product(PAIRS, (False, True)):
        check(qtensor(rng, fa, a_shape, extremes=extremes), qtensor(rng, fb, b_shape, extremes=extremes))
        check(qtensor(rng, fa, a_shape, -1), qtensor(rng, fb, b_shape))
        check(qtensor(rng, fa, a_shape), qtensor(rng, fb, b_shape, -2, top=3))
        check(qtensor(rng, fa, a_shape, -1, top=2, extremes=extremes), qtensor(rng, fb, b_shape, -2))


@given(
    seed=st.integers(0, 10**6),
    sizes=st.tuples(*[st.integers(0, 12)] * 3),
    formats=st.sampled_from(PAIRS),
    tops=st.tuples(st.integers(0, 12), st.integers(0, 12)),
)
def test_accumulators_of_any_shape_and_shift(seed, sizes, formats, tops):
    rng, (m, k, n) = np.random.default_rng(seed), sizes
    a = qtensor(rng, formats[0], (m, k), -1, tops[0], extremes=bool(seed % 2))
    check(a, qtensor(rng, formats[1], (k, n), -2, tops[1], extremes=bool(seed % 3)))


def test_transposed_and_strided_views():
    rng = np.random.default_rng(1)
    a, b = qtensor(rng, S4, (6, 10), 0), qtensor(rng, S8, (7, 10), 1)
    for left, right in ((a.T.T, b.T), (b, a.T), (b.T.T, a.T)):
        check(left.fold_shift(-1), right.fold_shift(-2))
    wide = codes(rng, S4, 6, 20)
    check(QTensor(wide[:, ::2], torch.ones(1, 1), S4), b.T)
    check(QTensor(wide[:1, :10].expand(6, 10), torch.ones(1, 1), S4), b.T)


# ------------------------------------------------------------------------------------------------- long reductions


@pytest.mark.parametrize(
    ("fa", "fb", "k"),
    [
        *[(S4, S4, k) for k in (342_392, 342_393, 342_395)],  # 2^24 / 49: float32 ends
        *[(U8, S8, k) for k in (518, 519, 521)],
        *[(S8, S8, k) for k in (1040, 1041, 133_144, 133_145, 200_001)],  # (2^31 - 1) / 127^2: int32 ends
        *[(U8, S8, k) for k in (66_311, 66_312)],
        (U8, U8, 33_026),
    ],
)
def test_extremes_beyond_every_bound(fa, fb, k):
    one = torch.ones(1, 1)
    for x, y in ((fa.qmax, fb.qmax), (fa.qmax, fb.qmin), (fa.qmin, fb.qmax)):
        a = QTensor(torch.full((1, k), x, dtype=fa.dtype), one, fa)
        b = QTensor(torch.full((k, 1), y, dtype=fb.dtype), one, fb)
        got = ops.matmul_accumulators(a, b)
        assert got.item() == k * x * y
        assert got.dtype is (torch.int32 if k * fa.qmax * fb.qmax < 2**31 else torch.int64)
    a.codes[0, ::2] = fa.qmax  # a sum that is small although its terms are not
    b.codes[::2] = fb.qmin
    check(a, b)


@pytest.mark.parametrize("limit", [1, 3, 1 << 10, 1 << 20])
def test_float64_chunks_add_to_the_same_sum(monkeypatch, limit):
    rng = np.random.default_rng(2)
    unit = 127 * 127 << 5
    monkeypatch.setattr(exact, "FLOAT64_LIMIT", limit * unit)
    cuts = []
    real = exact.chunked_sum

    def counted(length, unit, limit, part):
        return real(length, unit, limit, lambda ks: cuts.append(ks) or part(ks))

    monkeypatch.setattr(exact, "chunked_sum", counted)
    for extremes in (False, True):
        cuts.clear()
        check(qtensor(rng, S8, (3, 50), -1, 3, extremes), qtensor(rng, S8, (50, 4), -2, 2, extremes))
        assert len(cuts) == (-(-50 // limit) if limit < 50 else 1)


def test_a_shift_that_pushes_the_sum_beyond_float64():
    unit_shift = 36  # 127^2 2^36 is near 2^50: chunks of 8
    left = QTensor(
        torch.full((2, 40), 127, dtype=torch.int8),
        torch.ones(1, 1),
        S8,
        torch.zeros(1, 40, dtype=torch.uint8),
        18,
    )
    right = QTensor(
        torch.full((40, 1), 127, dtype=torch.int8),
        torch.ones(1, 1),
        S8,
        torch.zeros(40, 1, dtype=torch.uint8),
        unit_shift - 18,
    )
    left.codes[1, 39], left.shift[0, 39] = 1, 18
    right.shift[39] = 18
    got = check(left, right)
    assert got[0].item() == (39 * 127 * 127 << unit_shift) + 127 * 127
    assert got[1].item() % 2 == 1


@pytest.mark.parametrize(("k", "shift"), [(2, 40), (40_000, 39)])
def test_a_reduction_that_no_int64_holds_is_an_error(k, shift):
    e = torch.zeros(1, k, dtype=torch.uint8)
    a = QTensor(torch.ones(1, k, dtype=torch.int8), torch.ones(1, 1), S8, e, shift - 20)
    b = QTensor(torch.ones(k, 1, dtype=torch.int8), torch.ones(1, 1), S8, e.T, 20)
    with pytest.raises(OverflowError, match="does not fit"):
        ops.matmul(a, b)


# --------------------------------------------------------------------------------------------- four equal forms


@given(
    seed=st.integers(0, 10**6),
    sizes=st.tuples(*[st.integers(0, 10)] * 3),
    formats=st.sampled_from([(S4, S4), (S6, S6), (S4, S8), (S8, S8), (S2, S4)]),
    top=st.integers(0, 16),
)
def test_folded_horner_and_split_equal_the_op(seed, sizes, formats, top):
    rng, (m, k, n), (fa, fb) = np.random.default_rng(seed), sizes, formats
    a = qtensor(rng, fa, (m, k), -1, top, extremes=bool(seed % 2))
    b = qtensor(rng, fb, (k, n), extremes=bool(seed % 2))
    left = top - a.shift.flatten().to(torch.int64)
    room_a, room_b = 8 - fa.bits, 8 - fb.bits
    want = check(a, b).to(torch.int64)
    if k == 1:
        want = want << left
    forms = {
        "folded": shiftmm.folded(a.codes, b.codes, left),
        "horner": shiftmm.horner(a.codes, b.codes, left),
        "split": shiftmm.split(a.codes, b.codes, left, room_a, room_b),
    }
    if top <= room_a + room_b:
        forms["folded_both"] = shiftmm.folded_both(a.codes, b.codes, left, room_a, room_b)
    for name, got in forms.items():
        assert torch.equal(got, want), name


def test_folded_both_refuses_what_does_not_fit():
    a, b = torch.ones(1, 2, dtype=torch.int8), torch.ones(2, 1, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"a shift of 9 does not fold into 4 \+ 4"):
        shiftmm.folded_both(a, b, torch.tensor([0, 9]), 4, 4)


@pytest.mark.parametrize(("fa", "fb"), list(itertools.product([S2, S4, S6, S8, U8], [S4, S8])))
def test_fold_plan_keeps_both_operands_in_eight_bits(fa, fb):
    for shift in range(24):
        plan = shiftmm.fold_plan(fa, fb, shift)
        assert plan.on_a + plan.on_b + plan.rest == shift
        assert fa.bits + plan.on_a <= 8
        assert fb.bits + plan.on_b <= 8
        assert plan.rest == 0 or (fa.bits + plan.on_a, fb.bits + plan.on_b) == (8, 8)


# ------------------------------------------------------------------------------------------------------- epilogue


def float_model(a: QTensor, b: QTensor, bias: torch.Tensor | None) -> np.ndarray:
    """float32(acc) * (s_a * s_b), then + bias, each rounded to float32."""
    acc = model(a, b).astype(np.float32)
    unit = np.float32(2.0 ** -(a.max_shift + b.max_shift))
    out = acc * ((a.scale.numpy() * unit) * b.scale.numpy())
    return out if bias is None else out + bias.to(torch.float32).numpy()


def scaled(rng, q: QTensor, *sizes: int) -> QTensor:
    return QTensor(
        q.codes, torch.from_numpy(rng.random(sizes, dtype=np.float32)) + 0.01, q.format, q.shift, q.max_shift
    )


@pytest.mark.parametrize("bias_dtype", [None, torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("fmt", [S4, S8])
def test_epilogue_rounds_in_this_order(fmt, bias_dtype):
    rng = np.random.default_rng(3)
    for (m, k, n), a_rows, b_columns in itertools.product([(5, 33, 6), (3, 2000, 2)], (1, None), (1, None)):
        a = scaled(rng, qtensor(rng, fmt, (m, k), -1), a_rows or m, 1)
        b = scaled(rng, qtensor(rng, fmt, (k, n), -2), 1, b_columns or n)
        bias = None if bias_dtype is None else torch.from_numpy(rng.standard_normal(n)).to(bias_dtype)
        got = ops.matmul(a, b, bias)
        assert ops.last_kernel["scaled_matmul"] == "reference"
        assert got.dtype is torch.float32
        assert np.array_equal(got.numpy(), float_model(a, b, bias))


def test_epilogue_of_a_batch_with_a_scale_for_each_matrix():
    rng = np.random.default_rng(4)
    a = scaled(rng, qtensor(rng, S4, (3, 5, 8), -1), 3, 1, 1)
    b = scaled(rng, qtensor(rng, S4, (3, 8, 2), -2), 3, 1, 2)
    assert np.array_equal(ops.matmul(a, b).numpy(), float_model(a, b, None))


def test_a_shift_on_an_outer_axis_is_a_scale():
    rng = np.random.default_rng(5)
    a, b = qtensor(rng, S4, (5, 9), 0), qtensor(rng, S4, (9, 4), 1)
    exact_product = a.dequantize(torch.float64) @ b.dequantize(torch.float64)
    assert torch.equal(ops.matmul(a, b), exact_product.float())
    assert torch.equal(ops.matmul_accumulators(a, b), (a.codes.int() @ b.codes.int()))


def test_nan_scales_reach_the_outputs_that_they_belong_to():
    rng = np.random.default_rng(6)
    a, b = qtensor(rng, S4, (3, 4)), qtensor(rng, S4, (4, 2))
    rows = torch.tensor([[1.0], [float("nan")], [2.0]])
    got = ops.matmul(QTensor(a.codes, rows, S4), b)
    assert got[1].isnan().all()
    assert not got[[0, 2]].isnan().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype):
    rng = np.random.default_rng(7)
    for fmt, k in ((S4, 300), (S8, 800)):  # summed in float32, which autocast would lower, and in float64
        a, b = qtensor(rng, fmt, (9, k), -1), qtensor(rng, fmt, (k, 5))
        with torch.autocast("cpu", dtype=dtype):
            check(a, b)
            assert np.array_equal(ops.matmul(a, b).numpy(), float_model(a, b, None))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_matmul_precision_changes_nothing(precision):
    rng = np.random.default_rng(8)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        check(qtensor(rng, U8, (64, 512), extremes=True), qtensor(rng, S8, (512, 64), extremes=True))
        check(qtensor(rng, S4, (64, 2000), -1), qtensor(rng, S4, (2000, 64), -2))
    finally:
        torch.set_float32_matmul_precision(before)


# --------------------------------------------------------------------------------------------------------- errors


def plain(*shape: int, scale=None) -> QTensor:
    return QTensor(torch.zeros(shape, dtype=torch.int8), torch.ones([1] * len(shape)) if scale is None else scale, S4)


@pytest.mark.parametrize(
    ("a", "b"), [((2, 3), (4, 5)), ((2, 3), (3,)), ((3,), (3,)), ((2, 2, 3), (3, 4)), ((2, 2, 3), (4, 3, 4))]
)
def test_shapes_that_do_not_contract(a, b):
    for product in (ops.matmul, ops.matmul_accumulators):
        with pytest.raises(ValueError, match=r"matmul (takes|cannot)"):
            product(plain(*a), plain(*b))


def test_a_scale_that_varies_along_the_sum_breaks_the_contract():
    varying = torch.ones(1, 3)
    for product in (ops.matmul, ops.matmul_accumulators):
        with pytest.raises(ContractError, match=r"left operand \(2, 3\) varies along its reduced axis -1"):
            product(plain(2, 3, scale=varying), plain(3, 2))
        with pytest.raises(ContractError, match=r"right operand \(3, 2\) varies along its reduced axis -2"):
            product(plain(2, 3), plain(3, 2, scale=varying.T))
    assert issubclass(ContractError, ValueError)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 4), (4, 1), ()])
def test_a_bias_has_one_number_for_each_output(shape):
    with pytest.raises(ValueError, match=r"a bias for 4 outputs has shape \(4,\)"):
        ops.matmul(plain(2, 3), plain(3, 4), torch.ones(shape))
