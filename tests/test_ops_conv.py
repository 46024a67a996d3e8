"""Convolutions and their gradients against int64 loops in numpy (conv_model.py), bit for bit."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import conv_model as model
from conv_model import Case, operand, shifted, times_scale
from subbyte import ops
from subbyte.numerics import IntFormat
from subbyte.ops import ContractError, ConvParams, exact
from subbyte.qtensor import QTensor

pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch's own, from mkldnn.flags

S4, S8 = IntFormat(4), IntFormat(8)
U8 = IntFormat(8, signed=False)

CASES = [
    Case(2, 3, 4, (7, 5), (3, 3), (1, 1), (1, 1), (1, 1)),
    Case(1, 1, 1, (1, 1), (1, 1), (1, 1), (0, 0), (1, 1)),
    Case(2, 5, 3, (4, 6), (1, 1), (1, 1), (0, 0), (1, 1)),
    Case(17, 4, 6, (5, 5), (1, 1), (2, 2), (0, 0), (1, 1)),
    Case(2, 3, 2, (9, 8), (3, 2), (2, 1), (1, 0), (1, 1)),
    Case(2, 2, 3, (11, 10), (3, 3), (2, 3), (2, 1), (2, 3)),
    Case(1, 2, 2, (5, 5), (5, 5), (1, 1), (4, 4), (1, 1)),
    Case(3, 4, 6, (6, 7), (3, 3), (1, 1), (1, 1), (1, 1), groups=2),
    Case(2, 6, 6, (7, 7), (3, 3), (2, 2), (1, 1), (1, 1), groups=6),
    Case(2, 3, 6, (5, 4), (3, 1), (1, 2), (1, 0), (1, 1), groups=3),
    Case(2, 4, 2, (5, 4), (2, 2), (1, 1), (0, 1), (2, 1), groups=2),
    Case(0, 3, 4, (5, 5), (3, 3), (1, 1), (1, 1), (1, 1)),
    Case(2, 3, 4, (9,), (3,), (2,), (1,), (2,)),
    Case(2, 4, 4, (9,), (4,), (1,), (2,), (1,), groups=4),
    Case(2, 2, 3, (4, 5, 3), (3, 2, 1), (1, 2, 1), (1, 0, 1), (1, 1, 2)),
    Case(1, 4, 4, (3, 3, 3), (3, 3, 3), (2, 1, 1), (1, 1, 1), (1, 1, 1), groups=2),
]
every = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(autouse=True, scope="module")
def _reference():
    with ops.use_backend("reference"):
        yield


def equal(got: torch.Tensor, want: np.ndarray, op: str) -> None:
    assert ops.last_kernel[op] == "reference"
    assert got.dtype is torch.float32
    assert got.shape == want.shape
    assert np.array_equal(got.numpy(), want)


def over(case: Case, values) -> np.ndarray:
    """One value for each channel of an axis-1 tensor."""
    return np.asarray(values, np.float32).reshape(1, -1, *[1] * len(case.size))


def check_output(case: Case, x: QTensor, w: QTensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    got = ops.conv2d(x, w, bias, case.params)
    acc = model.output(case, shifted(x), shifted(w))
    unit = np.float32(2.0 ** -(x.max_shift + w.max_shift))
    sx, sw = x.scale.numpy(), w.scale.numpy()[:, 0].reshape(1, -1, *[1] * len(case.size))
    if sx.shape[1] != 1:  # depthwise: output o belongs to the channel o // (O / C)
        sx = sx[:, [o // (case.o // case.c) for o in range(case.o)]]
    b = None if bias is None else over(case, bias.to(torch.float32).numpy())
    equal(got, times_scale(acc, sx, sw * unit, b), "scaled_conv2d")
    return got


def check_grad_input(case: Case, g: QTensor, w: QTensor) -> torch.Tensor:
    got = ops.conv2d_grad_input(g, w, case.x_shape, case.params)
    acc = model.grad_input(case, shifted(g), shifted(w))
    inner = case.c // case.groups
    group = [c // inner for c in range(case.c)]
    sg, sw = g.scale.numpy(), w.scale.numpy().reshape(w.scale.shape[:2])
    if sg.shape[1] != 1:  # one output for each group
        sg = sg[:, group]
    wide = np.broadcast_to(sw, (max(sw.shape[0], case.groups), inner))
    sw = over(case, [wide[group[c], c % inner] for c in range(case.c)])
    unit = np.float32(2.0 ** -(g.max_shift + w.max_shift))
    equal(got, times_scale(acc, sg, sw * unit), "scaled_conv2d_grad_input")
    return got


def check_grad_weight(case: Case, g: QTensor, x: QTensor) -> torch.Tensor:
    got = ops.conv2d_grad_weight(g, x, case.w_shape, case.params)
    g, x = g.fold_shift(0), x.fold_shift(0)
    acc = model.grad_weight(case, shifted(g), shifted(x))
    inner, of_group = case.c // case.groups, case.o // case.groups
    sg = np.broadcast_to(g.scale.numpy().reshape(-1), (case.o,))
    sx = np.broadcast_to(x.scale.numpy().reshape(-1), (case.c,))
    ones = [1] * len(case.size)
    sg = sg.reshape(-1, 1, *ones)
    sx = np.array([[sx[o // of_group * inner + j] for j in range(inner)] for o in range(case.o)], np.float32)
    unit = np.float32(2.0 ** -(g.max_shift + x.max_shift))
    equal(got, times_scale(acc, sg * unit, sx.reshape(case.o, inner, *ones)), "scaled_conv2d_grad_weight")
    return got


@pytest.fixture(params=[True, False], ids=["mkldnn", "plain"])
def mkldnn(request):
    """With oneDNN the reference takes float32 where it is exact; without it everything is float64."""
    with torch.backends.mkldnn.flags(enabled=request.param):
        yield request.param


@every
@pytest.mark.parametrize(("fx", "fw"), [(S4, S4), (U8, S8)], ids=["s4s4", "u8s8"])
def test_output(mkldnn, case, fx, fw):
    rng = np.random.default_rng(0)
    bias = torch.from_numpy(rng.standard_normal(case.o)).to(torch.float32)
    for extremes in (False, True):
        x = operand(rng, fx, case.x_shape, (0,), extremes=extremes)
        w = operand(rng, fw, case.w_shape, (0,), extremes=extremes)
        check_output(case, x, w)
        check_output(case, x, w, bias)
    shifts = (operand(rng, fx, case.x_shape, (0,), 1), operand(rng, fw, case.w_shape, (0,), 1, 2))
    if case.c // case.groups > 1:  # else a weight's exponent along a single channel belongs to the scale
        check_output(case, shifts[0], shifts[1], bias.double())


@every
@pytest.mark.parametrize("fmt", [S4, S8], ids=str)
def test_grad_input(mkldnn, case, fmt):
    rng = np.random.default_rng(1)
    for extremes in (False, True):
        g = operand(rng, fmt, case.g_shape, (0,), extremes=extremes)
        check_grad_input(case, g, operand(rng, fmt, case.w_shape, extremes=extremes))
        check_grad_input(case, g, operand(rng, fmt, case.w_shape, (1,), extremes=extremes))
    if case.o > 1:
        g = operand(rng, fmt, case.g_shape, (0,), 1)
        check_grad_input(case, g, operand(rng, fmt, case.w_shape))
        check_grad_input(case, g, operand(rng, fmt, case.w_shape, (1,), 0, 3))


@every
@pytest.mark.parametrize(("fg", "fx"), [(S4, S4), (S8, U8)], ids=["s4s4", "s8u8"])
def test_grad_weight(mkldnn, case, fg, fx):
    rng = np.random.default_rng(2)
    for extremes, axes in itertools.product((False, True), ((), (1,))):
        g = operand(rng, fg, case.g_shape, axes, extremes=extremes)
        check_grad_weight(case, g, operand(rng, fx, case.x_shape, axes, extremes=extremes))
    outer = operand(rng, fg, case.g_shape, (), 1)
    inside = operand(rng, fx, case.x_shape, (), 0, 3)
    if case.o > 1:
        # A gradient's exponent along its channels is outside the sum: it becomes the scale of a row.
        folded = QTensor(outer.codes, outer.effective_scale(), fg)
        assert torch.equal(check_grad_weight(case, outer, inside), check_grad_weight(case, folded, inside))
    check_grad_weight(case, operand(rng, fg, case.g_shape, (), 0, 4), inside)


DEPTHWISE = [case for case in CASES if case.groups == case.c > 1]


@pytest.mark.parametrize("case", DEPTHWISE, ids=str)
def test_depthwise_takes_a_scale_for_each_channel_in_all_three(mkldnn, case):
    rng = np.random.default_rng(3)
    x, w = operand(rng, S8, case.x_shape, (0, 1)), operand(rng, S4, case.w_shape, (0,))
    check_output(case, x, w)
    if case.o == case.c:
        check_grad_input(case, operand(rng, S4, case.g_shape, (0, 1)), w)
    check_grad_weight(case, operand(rng, S4, case.g_shape, (1,)), operand(rng, S8, case.x_shape, (1,)))


def test_a_weight_scale_along_both_axes_where_each_group_has_one_output():
    case = Case(2, 6, 3, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1), groups=3)
    rng = np.random.default_rng(4)
    g = operand(rng, S4, case.g_shape, (0, 1))
    check_grad_input(case, g, operand(rng, S4, case.w_shape, (0, 1)))
    check_grad_input(case, g, operand(rng, S4, case.w_shape, (0,)))


# -------------------------------------------------------------------------------------------------- long reductions


def full(fmt: IntFormat, shape, value: int) -> QTensor:
    return QTensor(torch.full(shape, value, dtype=fmt.dtype), torch.ones([1] * len(shape)), fmt)


LONG = [  # s8 x s8: 2^24 / 127^2 = 1040 terms
    Case(1, 115, 2, (3, 3), (3, 3), (1, 1), (1, 1), (1, 1)),
    Case(1, 116, 2, (3, 3), (3, 3), (1, 1), (1, 1), (1, 1)),
    Case(1, 261, 2, (3, 3), (3, 3), (1, 1), (1, 1), (1, 1)),
    Case(1, 260, 2, (3, 3), (3, 3), (1, 1), (1, 1), (1, 1), groups=2),
    Case(1, 3, 2, (34, 34), (33, 33), (1, 1), (0, 0), (1, 1)),
    Case(3, 1, 2, (33, 33), (1, 1), (1, 1), (0, 0), (1, 1)),
    Case(7, 2, 2, (32, 30), (1, 1), (1, 1), (0, 0), (1, 1)),
]


def cancelling(rng, shape, axis: int, flip: bool) -> QTensor:
    """Codes of 120..127, negative along the second half of an axis if asked: large sums on the way to a small one."""
    c = torch.from_numpy(rng.integers(120, 128, shape)).to(torch.int8)
    if flip:
        half = shape[axis] // 2
        c.narrow(axis, half, shape[axis] - half).neg_()
    return QTensor(c, torch.ones([1] * len(shape)), S8)


@pytest.mark.parametrize("flip", [False, True], ids=["large", "cancelling"])
@pytest.mark.parametrize("case", LONG, ids=str)
def test_extremes_beyond_the_float32_bound(mkldnn, case, flip):
    rng = np.random.default_rng(10)
    x = cancelling(rng, case.x_shape, 0, False)
    check_output(case, x, cancelling(rng, case.w_shape, 1, flip))
    check_grad_weight(case, cancelling(rng, case.g_shape, 0, flip), x)
    swapped = replace(case, n=1, c=2, o=case.c)
    g, w = cancelling(rng, swapped.g_shape, 1, flip), cancelling(rng, swapped.w_shape, 0, False)
    check_grad_input(swapped, g, w)
    low, high = full(S8, case.x_shape, -127), full(S8, case.w_shape, 127)
    check_output(case, low, high)
    check_grad_weight(case, full(S8, case.g_shape, -127), low)


@pytest.mark.parametrize("case", [CASES[0], CASES[7], CASES[8], CASES[14]], ids=str)
@pytest.mark.parametrize("terms", [1, 2])
def test_chunks_add_to_the_same_sum(monkeypatch, mkldnn, case, terms):
    rng = np.random.default_rng(5)
    x, w, g = (operand(rng, S8, s, (), 1, 3, extremes=True) for s in (case.x_shape, case.w_shape, case.g_shape))
    w_outputs = operand(rng, S8, case.w_shape, (), 0, 3, extremes=True)
    per_sample = operand(rng, S8, case.g_shape, (), 0, 3, extremes=True)
    plain = operand(rng, S8, case.x_shape)
    taps, pixels = int(np.prod(case.kernel)), int(np.prod(case.g_shape[2:]))

    def limited(unit: int):
        monkeypatch.setattr(exact, "FLOAT32_LIMIT", terms * unit)
        monkeypatch.setattr(exact, "FLOAT64_LIMIT", terms * unit)

    w = w if case.c > case.groups else w.fold_shift(0)
    limited(127 * 127 * taps << x.max_shift + w.max_shift)
    check_output(case, x, w)
    limited(127 * 127 * taps << g.max_shift + w_outputs.max_shift)
    check_grad_input(case, g, w_outputs)
    limited(127 * 127 * pixels << per_sample.max_shift)
    check_grad_weight(case, per_sample, plain)


def test_a_reduction_that_no_int64_holds_is_an_error():
    x = operand(np.random.default_rng(6), S8, (1, 2, 3, 3), (), 1, 23)
    w = operand(np.random.default_rng(6), S8, (2, 2, 3, 3), (), 1, 23)
    with pytest.raises(OverflowError, match="does not fit"):
        ops.conv2d(x, w, None, ConvParams())


# ---------------------------------------------------------------------------------------------- layouts and context

IMAGE = CASES[0]


def relaid(q: QTensor, how: str) -> QTensor:
    c = q.codes
    if how == "channels_last":
        c = c.contiguous(memory_format=torch.channels_last)
    elif how == "transposed":
        c = c.mT.contiguous().mT
    elif how == "strided":
        c = torch.stack((c, c), -1)[..., 0]
    return QTensor(c, q.scale, q.format, q.shift, q.max_shift)


@pytest.mark.parametrize("how", ["channels_last", "transposed", "strided"])
def test_layouts_give_the_same_numbers(mkldnn, how):
    rng = np.random.default_rng(7)
    x, w = operand(rng, S4, IMAGE.x_shape, (0,), 1), operand(rng, S4, IMAGE.w_shape, (0,), 1)
    g, w_in = operand(rng, S4, IMAGE.g_shape, (0,), 1), operand(rng, S4, IMAGE.w_shape, (1,), 0)
    plain = operand(rng, S4, IMAGE.x_shape, (1,))
    y = check_output(IMAGE, relaid(x, how), relaid(w, how))
    dx = check_grad_input(IMAGE, relaid(g, how), relaid(w_in, how))
    g = QTensor(g.codes, torch.ones(1, 1, 1, 1), S4)
    dw = check_grad_weight(IMAGE, relaid(g, how), relaid(plain, how))
    last = torch.channels_last if how == "channels_last" else torch.contiguous_format
    assert y.is_contiguous(memory_format=last)
    assert dx.is_contiguous(memory_format=last)
    assert dw.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype):
    rng = np.random.default_rng(8)
    with torch.autocast("cpu", dtype=dtype):
        for case in (IMAGE, CASES[8]):
            x, w = operand(rng, U8, case.x_shape, extremes=True), operand(rng, S8, case.w_shape, extremes=True)
            g = operand(rng, S8, case.g_shape, extremes=True)
            check_output(case, x, w)
            check_grad_input(case, g, w)
            check_grad_weight(case, g, x)


def test_nan_scales_reach_the_outputs_that_they_belong_to():
    rng = np.random.default_rng(9)
    x, w = operand(rng, S4, IMAGE.x_shape, (0,)), operand(rng, S4, IMAGE.w_shape)
    x.scale[1] = torch.nan
    y = ops.conv2d(x, w, None, IMAGE.params)
    assert y[1].isnan().all()
    assert not y[0].isnan().any()


# ---------------------------------------------------------------------------------------------- contract and shapes


def plain(shape, *scale_axes: int) -> QTensor:
    return QTensor(torch.zeros(shape, dtype=torch.int8), torch.ones(model.along(shape, *scale_axes)), S4)


GROUPED = CASES[7]


@pytest.mark.parametrize("case", [IMAGE, GROUPED], ids=str)
def test_scales_that_vary_inside_a_sum_break_the_contract(case):
    x, w, g = case.x_shape, case.w_shape, case.g_shape
    p = case.params
    calls = {
        "input": [lambda axis: ops.conv2d(plain(x, axis), plain(w), None, p), (1, 2, 3)],
        "weight": [lambda axis: ops.conv2d(plain(x), plain(w, axis), None, p), (1, 2, 3)],
        "gradient": [lambda axis: ops.conv2d_grad_input(plain(g, axis), plain(w), x, p), (1, 2, 3)],
        "weight ": [lambda axis: ops.conv2d_grad_input(plain(g), plain(w, axis), x, p), (0, 2, 3)],
        "gradient ": [lambda axis: ops.conv2d_grad_weight(plain(g, axis), plain(x), w, p), (0, 2, 3)],
        "input ": [lambda axis: ops.conv2d_grad_weight(plain(g), plain(x, axis), w, p), (0, 2, 3)],
    }
    for who, (call, axes) in calls.items():
        for axis in axes:
            with pytest.raises(ContractError, match=f"of the {who.strip()} .* varies inside the sum"):
                call(axis)


def test_a_shift_along_pixels_is_a_scale_along_pixels():
    c = torch.zeros(IMAGE.x_shape, dtype=torch.int8)
    q = QTensor(c, torch.ones(1, 1, 1, 1), S4, torch.zeros(1, 1, 7, 1, dtype=torch.uint8), 3)
    with pytest.raises(ContractError):
        ops.conv2d(q, plain(IMAGE.w_shape), None, IMAGE.params)


@pytest.mark.parametrize(
    ("x", "w", "groups"),
    [
        ((2, 3, 7, 5), (4, 2, 3, 3), 1),
        ((2, 4, 7, 5), (4, 4, 3, 3), 2),
        ((2, 4, 7, 5), (3, 2, 3, 3), 2),
        ((2, 3, 7), (4, 3, 3), 1),
        ((2, 3, 7, 5), (4, 3, 3), 1),
    ],
)
def test_shapes_that_do_not_fit(x, w, groups):
    with pytest.raises(ValueError, match=r"conv2d takes x \(N, C, H, W\) and w"):
        ops.conv2d(plain(x), plain(w), None, ConvParams(groups=groups))


def test_a_kernel_beyond_its_input():
    with pytest.raises(ValueError, match="kernel of reach 5 exceeds the padded input"):
        ops.conv2d(plain((1, 1, 4, 9)), plain((1, 1, 3, 3)), None, ConvParams(dilation=(2, 1)))


def test_a_gradient_of_another_shape():
    x, w = IMAGE.x_shape, IMAGE.w_shape
    with pytest.raises(ValueError, match=r"has shape \(2, 4, 7, 5\), not \(2, 4, 6, 5\)"):
        ops.conv2d_grad_input(plain((2, 4, 6, 5)), plain(w), x, IMAGE.params)
    with pytest.raises(ValueError, match=r"has shape \(2, 4, 7, 5\), not \(1, 4, 7, 5\)"):
        ops.conv2d_grad_weight(plain((1, 4, 7, 5)), plain(x), w, IMAGE.params)


def test_a_bias_has_one_number_for_each_output():
    with pytest.raises(ValueError, match=r"a bias for 4 outputs has shape \(4,\), not \(1,\)"):
        ops.conv2d(plain(IMAGE.x_shape), plain(IMAGE.w_shape), torch.ones(1), IMAGE.params)


def test_parameters_of_unequal_length():
    with pytest.raises(ValueError, match="a number for each spatial dimension"):
        ConvParams((1, 1), (0,), (1, 1))
