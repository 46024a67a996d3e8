"""The sums and passes of quantized normalization against Python integers and numpy's int64 and float32."""

import itertools
import math

import numpy as np
import pytest
import torch

from subbyte import ops
from subbyte.numerics import IntFormat
from subbyte.ops import norm

BATCH_NORM, LAYER_NORM, GROUP_NORM = "batch", "layer", "group"
GEOMETRIES = {  # shape, dims of a statistic, dims of gamma's gradient
    BATCH_NORM: ((3, 5, 4, 6), [0, 2, 3], [0, 2, 3]),
    LAYER_NORM: ((7, 33), [1], [0]),
    GROUP_NORM: ((2, 3, 4, 5), [2, 3], [0, 2]),
    "one row": ((1, 9), [1], [0]),
    "one element each": ((4, 1), [1], [0]),
}
every = pytest.mark.parametrize("kind", GEOMETRIES)


@pytest.fixture(autouse=True, scope="module")
def _reference():
    with ops.use_backend("reference"):
        yield


def codes(rng, shape, fill: str = "random", top: int = 127) -> torch.Tensor:
    if fill == "random":
        return torch.from_numpy(rng.integers(-top, top + 1, shape)).to(torch.int8)
    if fill == "signs":
        return torch.from_numpy(rng.choice([-top, top], shape)).to(torch.int8)
    return torch.full(shape, {"max": top, "min": -top, "zero": 0}[fill], dtype=torch.int8)


def kept(shape, dims) -> list[int]:
    return [1 if i in dims else n for i, n in enumerate(shape)]


def groups(q: torch.Tensor, dims) -> dict[tuple[int, ...], list[int]]:
    """Index of a statistic -> the Python integers that it reduces."""
    out: dict[tuple[int, ...], list[int]] = {}
    for at in itertools.product(*map(range, q.shape)):
        key = tuple(0 if i in dims else v for i, v in enumerate(at))
        out.setdefault(key, []).append(int(q[at]))
    return out


def statistic(rng, shape, dims, low=0.1, high=2.0) -> torch.Tensor:
    return torch.from_numpy(rng.uniform(low, high, kept(shape, dims))).to(torch.float32)


# ---------------------------------------------------------------------------------------------------------- stats


@every
@pytest.mark.parametrize("fill", ["random", "signs", "max", "min", "zero"])
@pytest.mark.parametrize("l2", [False, True], ids=["l1", "l2"])
def test_stats_against_python(kind, fill, l2):
    shape, dims, _ = GEOMETRIES[kind]
    q = codes(np.random.default_rng(0), shape, fill)
    total, spread, least, greatest = norm.norm_stats(q, dims, l2)
    assert ops.last_kernel["norm_stats"] == "reference"
    for t in (total, spread, least, greatest):
        assert t.dtype is torch.int64
        assert list(t.shape) == kept(shape, dims)
    for at, values in groups(q, dims).items():
        n, s = len(values), sum(values)
        assert int(total[at]) == s
        assert (int(least[at]), int(greatest[at])) == (min(values), max(values))
        if l2:
            assert int(spread[at]) == n * sum(v * v for v in values) - s * s
        else:
            assert int(spread[at]) == sum(abs(n * v - s) for v in values)


@every
@pytest.mark.parametrize("fill", ["random", "signs", "zero"])
@pytest.mark.parametrize("l2", [False, True], ids=["l1", "l2"])
def test_uncentred_stats_against_python(kind, fill, l2):
    shape, dims, _ = GEOMETRIES[kind]
    q = codes(np.random.default_rng(0), shape, fill)
    spread, top = norm.norm_stats_uncentred(q, dims, l2)
    assert ops.last_kernel["norm_stats_uncentred"] == "reference"
    for t in (spread, top):
        assert t.dtype is torch.int64
        assert list(t.shape) == kept(shape, dims)
    for at, values in groups(q, dims).items():
        assert int(spread[at]) == sum(v * v if l2 else abs(v) for v in values)
        assert int(top[at]) == max(abs(v) for v in values)


def test_stats_of_unsigned_codes():
    q = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (4, 50))).to(torch.uint8)
    for l2 in (False, True):
        total, spread, _, _ = norm.norm_stats(q, [1], l2)
        for i, row in enumerate(q.tolist()):
            n, s = len(row), sum(row)
            assert int(total[i]) == s
            want = n * sum(v * v for v in row) - s * s if l2 else sum(abs(n * v - s) for v in row)
            assert int(spread[i]) == want


@pytest.mark.parametrize("l2", [False, True], ids=["l1", "l2"])
def test_stats_at_the_largest_count(l2):
    """Half of the codes at each end: the largest spread that 2^24 codes have."""
    n = norm.MAX_COUNT
    q = torch.full((1, n), 127, dtype=torch.int8)
    q[:, : n // 2] = -127
    total, spread, least, greatest = norm.norm_stats(q, [1], l2)
    assert (int(total), int(least), int(greatest)) == (0, -127, 127)
    assert int(spread) == (n * n * 127 * 127 if l2 else n * n * 127)


def test_a_count_beyond_the_largest_is_an_error():
    q = torch.zeros(1, 1, dtype=torch.int8).expand(1, norm.MAX_COUNT + 1)
    for stats in (norm.norm_stats, norm.norm_stats_uncentred):
        with pytest.raises(ValueError, match=f"over {norm.MAX_COUNT + 1} elements exceeds the {norm.MAX_COUNT}"):
            stats(q, [1], False)
    assert norm.count(torch.Size((4, 5, 6)), (0, 2)) == 24


# ---------------------------------------------------------------------------------------------------------- apply


def apply_model(q, total, factor, n, fmt: IntFormat, q_gamma, scale, beta):
    """k = round(rint(float32(n q - S) * factor) / 2^16), y = float32(k q_gamma) * scale + beta, in numpy."""
    d = n * q.numpy().astype(np.int64) - total.numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        t = np.rint(d.astype(np.float32) * factor.numpy())
    t = np.clip(np.where(np.isnan(t), 0, t), fmt.qmin * 65536, fmt.qmax * 65536)
    k = np.rint(t.astype(np.float64) / 65536).astype(np.int64)
    y = (k * q_gamma.numpy().astype(np.int64)).astype(np.float32) * scale.numpy() + beta.numpy()
    return y, k


@every
@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("fill", ["random", "signs", "max"])
def test_apply_against_numpy(kind, bits, fill):
    shape, dims, param_dims = GEOMETRIES[kind]
    rng, fmt = np.random.default_rng(2), IntFormat(bits)
    q = codes(rng, shape, fill)
    n = math.prod(shape[d] for d in dims)
    total, _, least, greatest = norm.norm_stats(q, dims, False)
    top = torch.maximum(n * greatest - total, total - n * least)
    factor = (fmt.qmax * 65536 / top.clamp(min=1).double()).float()
    gamma_shape = kept(shape, param_dims)
    for q_gamma in (
        codes(rng, gamma_shape),
        codes(rng, gamma_shape, "min"),
        torch.ones([1] * len(shape)).to(torch.int8),
    ):
        scale, beta = statistic(rng, shape, param_dims), statistic(rng, shape, param_dims, -1, 1)
        for f in (factor, factor * 3, factor * 0):
            y, k = norm.norm_apply(q, total, f, n, bits, q_gamma, scale, beta)
            want_y, want_k = apply_model(q, total, f, n, fmt, q_gamma, scale, beta)
            assert ops.last_kernel["norm_apply"] == "reference"
            assert (y.dtype, k.dtype) == (torch.float32, torch.int8)
            assert np.array_equal(k.numpy(), want_k)
            assert np.array_equal(y.numpy(), want_y)


def test_apply_lets_nan_through_to_y_but_never_to_a_code():
    q = codes(np.random.default_rng(3), (2, 8))
    total, *_ = norm.norm_stats(q, [1], False)
    one = torch.ones(1, 1)
    factor = torch.tensor([[math.nan], [math.inf]])
    y, k = norm.norm_apply(q, total, factor, 8, 4, one.to(torch.int8), one * math.nan, one)
    assert not k[0].any()
    assert k.abs().max() <= 7
    assert y.isnan().all()


# --------------------------------------------------------------------------------------------------- grad_stats


@every
@pytest.mark.parametrize("fill", ["random", "signs", "max", "min", "zero"])
def test_grad_stats_against_python(kind, fill):
    shape, dims, param_dims = GEOMETRIES[kind]
    rng = np.random.default_rng(4)
    q_g, k = codes(rng, shape, fill), codes(rng, shape, fill)
    for q_gamma in (codes(rng, kept(shape, param_dims)), torch.full([1] * len(shape), -127, dtype=torch.int8)):
        got = norm.norm_grad_stats(q_g, k, q_gamma, dims, param_dims)
        assert ops.last_kernel["norm_grad_stats"] == "reference"
        assert all(t.dtype is torch.int64 for t in got)
        h = q_g.long() * q_gamma.long()
        wanted = [(h, dims), (h * k.long(), dims), (k.sign(), dims), (q_g, param_dims), (q_g.long() * k, param_dims)]
        for t, (terms, over) in zip(got, wanted, strict=True):
            assert list(t.shape) == kept(shape, over)
            for at, values in groups(terms, over).items():
                assert int(t[at]) == sum(values)


def test_grad_stats_of_extremes_need_more_than_32_bits():
    n = 1 << 20
    q = torch.full((1, n), 127, dtype=torch.int8)
    _, sum_hk, sum_t, sum_g, sum_gk = norm.norm_grad_stats(q, -q, torch.tensor([[127]], dtype=torch.int8), [1], [1])
    assert int(sum_hk) == -n * 127**3
    assert (int(sum_t), int(sum_g), int(sum_gk)) == (-n, 127 * n, -n * 127**2)


# --------------------------------------------------------------------------------------------------- grad_apply


@every
@pytest.mark.parametrize("l2", [False, True], ids=["l1", "l2"])
@pytest.mark.parametrize("fill", ["random", "signs", "min"])
def test_grad_apply_rounds_each_operation(kind, l2, fill):
    shape, dims, param_dims = GEOMETRIES[kind]
    rng = np.random.default_rng(5)
    q_g, k, q_gamma = codes(rng, shape, fill), codes(rng, shape, fill), codes(rng, kept(shape, param_dims))
    a, u, v, t = (statistic(rng, shape, dims, -3, 3) for _ in range(4))
    got = norm.norm_grad_apply(q_g, k, q_gamma, a, u, v, t, l2)
    assert ops.last_kernel["norm_grad_apply"] == "reference"
    h = (q_g.numpy().astype(np.int64) * q_gamma.numpy()).astype(np.float32)
    s = k.numpy().astype(np.float32)
    s = s if l2 else np.sign(s)
    want = a.numpy() * (h - (u.numpy() + v.numpy() * (s - t.numpy())))
    assert want.dtype == np.float32
    assert got.dtype is torch.float32
    assert np.array_equal(got.numpy(), want)


# ------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("l2", [False, True], ids=["l1", "l2"])
def test_channels_last_and_strided_codes_give_the_same(l2):
    shape, dims, param_dims = GEOMETRIES[BATCH_NORM]
    rng = np.random.default_rng(6)
    q, g = codes(rng, shape), codes(rng, shape)
    q_gamma, factor = codes(rng, kept(shape, param_dims)), statistic(rng, shape, dims)
    a, u, v, t = (statistic(rng, shape, dims) for _ in range(4))

    def everything(x, y):
        stats = norm.norm_stats(x, dims, l2)
        applied = norm.norm_apply(x, stats[0], factor, 72, 6, q_gamma, a, u)
        sums = norm.norm_grad_stats(y, x, q_gamma, dims, param_dims)
        return [*stats, *applied, *sums, norm.norm_grad_apply(y, x, q_gamma, a, u, v, t, l2)]

    want = everything(q, g)
    last = torch.channels_last
    views = [
        (q.contiguous(memory_format=last), g.contiguous(memory_format=last)),
        (q.contiguous(memory_format=last), g),
        (torch.stack((q, q), -1)[..., 0], g.mT.contiguous().mT),
    ]
    for x, y in views:
        for got, wanted in zip(everything(x, y), want, strict=True):
            assert torch.equal(got, wanted)
    assert everything(*views[0])[-1].is_contiguous(memory_format=last)
