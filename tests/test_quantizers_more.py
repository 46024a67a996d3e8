"""What the quantizers for comparison owe, each in a row: finite values, error bounds, zeros, NaN, layouts, JSON.

Those whose range is a maximum have their rows in test_quantizers.py; what only one of these claims is in
test_quantizers_clip.py, _emulated.py and _learned.py.
"""

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subbyte import ops
from subbyte.qtensor import Emulated, QTensor
from subbyte.quantizers import (
    SAWB,
    BlockHouseholder,
    LearnedStep,
    LogUnbiased,
    MSEClip,
    MXInt,
    Quantizer,
    ZeroPoint,
    from_dict,
    to_dict,
)
from test_quantizers import sample

CLIPPED = [
    SAWB(4),
    SAWB(2, rounding="stochastic"),
    SAWB(8, signed=False),
    MSEClip(4),
    MSEClip(2, rounding="stochastic"),
    MSEClip(8, signed=False, candidates=16),
    LearnedStep(4),
    LearnedStep(3, signed=False, rounding="stochastic", rate=0.1),
    MXInt(4),
    MXInt(4, block=3, rounding="stochastic"),
    MXInt(8, signed=False, axis=0, block=2),
    MXInt(6, block=2, scale="ceil", rounding="stochastic"),
]
EMULATED = [
    LogUnbiased(4),
    LogUnbiased(2),
    LogUnbiased(6, rounding="nearest"),
    LogUnbiased(3, signed=False),
    BlockHouseholder(4),
    BlockHouseholder(5, rounding="stochastic"),
    BlockHouseholder(8, signed=False),
    ZeroPoint(4),
    ZeroPoint(8, rounding="stochastic"),
    ZeroPoint(3, axis=0, rounding="stochastic"),
    ZeroPoint(4, axis=1),
]
EXAMPLES = [*CLIPPED, *EMULATED]
WHOLE = [q for q in EXAMPLES if not isinstance(q, MXInt) and getattr(q, "axis", None) is None]

few = settings(max_examples=10)
every = pytest.mark.parametrize("quantizer", EXAMPLES, ids=str)


@pytest.fixture(autouse=True, scope="module")
def _reference():
    with ops.use_backend("reference"):
        yield


def run(quantizer: Quantizer, x: torch.Tensor, seed: int = 11) -> QTensor | Emulated:
    return quantizer(x, torch.tensor(seed) if quantizer.stochastic else None)


def test_every_other_quantizer_has_a_row_here():
    homes = {f"subbyte.quantizers.{m}" for m in ("absmax", "shift", "token_shift", "block_shift", "oracle")}
    modules = {n: cls.__module__ for n, cls in Quantizer.registry.items()}
    ours = {n for n, m in modules.items() if m.startswith("subbyte.quantizers.") and m not in homes}
    assert {type(q).__name__ for q in EXAMPLES} == ours


@every
@few
@given(seed=st.integers(0, 10**6), m=st.integers(1, 6), k=st.integers(1, 12), spread=st.floats(0, 4))
def test_the_carrier_and_its_values(quantizer, seed, m, k, spread):
    x = sample(seed, m, k, spread=spread, signed=quantizer.signed)
    q = run(quantizer, x, seed)
    assert type(q) is (QTensor if quantizer in CLIPPED else Emulated)
    assert q.shape == x.shape
    assert q.format == quantizer.format
    values = q.dequantize()
    assert values.dtype is torch.float32
    assert values.isfinite().all()
    if isinstance(q, QTensor):
        assert quantizer.format.qmin <= int(q.codes.min())
        assert int(q.codes.max()) <= quantizer.format.qmax
    if quantizer.signed and not isinstance(quantizer, (BlockHouseholder, ZeroPoint)):
        assert (values * x >= 0).all()


@pytest.mark.parametrize("quantizer", CLIPPED, ids=str)
@few
@given(seed=st.integers(0, 10**6))
def test_codes_are_at_most_a_step_off_inside_the_range_and_the_end_of_it_outside(quantizer, seed):
    x = sample(seed, 5, 7, spread=1, signed=quantizer.signed)
    q = run(quantizer, x, seed)
    r, shift, _ = quantizer.ranges(x)
    assert shift is None
    step = q.scale.double().expand(5, 7)
    error = (x.double() - q.dequantize(torch.float64)).abs()
    inside = x.abs() <= r
    assert (error <= step * (1 if quantizer.stochastic else 0.5 + 2.0**-13))[inside].all()
    assert (q.codes.abs() == quantizer.format.qmax)[~inside].all()


@pytest.mark.parametrize("quantizer", [q for q in CLIPPED if isinstance(q, MXInt)], ids=str)
@few
@given(seed=st.integers(0, 10**6))
def test_a_block_scale_is_idempotent(quantizer, seed):
    nearest = quantizer.nearest()
    q = nearest(sample(seed, 4, 7, spread=2, signed=quantizer.signed))
    again = nearest(q.dequantize())
    assert torch.equal(again.dequantize(), q.dequantize())


@pytest.mark.parametrize("quantizer", [q for q in EMULATED if not isinstance(q, BlockHouseholder)], ids=str)
@few
@given(seed=st.integers(0, 10**6))
def test_emulated_values_are_idempotent(quantizer, seed):
    """Levels and ends of the range are values again; a ZeroPoint's grid moves by what float32 rounds."""
    nearest = quantizer.nearest()
    values = nearest(sample(seed, 4, 7, spread=1, signed=quantizer.signed)).values
    again = nearest(values).values
    assert torch.allclose(again, values, rtol=0, atol=2.0**-22 * float(values.abs().max()))


@every
def test_a_zero_tensor(quantizer):
    for tiny in (0.0, -0.0, 1e-45, -1e-40):
        values = run(quantizer, torch.full((3, 5), tiny)).dequantize()
        assert (values.abs() <= 1e-40).all()  # a ZeroPoint keeps what all values are


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_surface_as_nan(quantizer, bad):
    x = sample(6, 4, 5, signed=quantizer.signed)
    x[1, 2] = bad
    values = run(quantizer, x).dequantize()
    assert values[1, 2].isnan()
    if quantizer in WHOLE:
        assert values.isnan().all()


@every
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (0, 3, 2, 2), (2, 3, 0, 2)])
def test_empty_tensors(quantizer, shape):
    q = run(quantizer, torch.empty(shape))
    assert q.shape == shape
    assert q.dequantize().shape == shape


@every
def test_codes_do_not_depend_on_the_layout(quantizer):
    x = sample(7, 3, 4, 5, 6, signed=quantizer.signed)
    want = run(quantizer, x).dequantize()
    wide = torch.zeros(3, 8, 5, 6)
    wide[:, ::2] = x
    last = x.contiguous(memory_format=torch.channels_last)
    for view in (last, wide[:, ::2], x.transpose(2, 3).contiguous().transpose(2, 3)):
        assert torch.equal(run(quantizer, view).dequantize(), want)


@every
def test_every_backend_gives_the_same_values(quantizer):
    x = sample(7, 3, 40, 5, 6, signed=quantizer.signed)
    for view in (x, x.contiguous(memory_format=torch.channels_last), x.flatten(1), x.flatten(1).T.contiguous().T):
        want = run(quantizer, view).dequantize()
        with ops.use_backend(None):  # the automatic choice
            assert torch.equal(run(quantizer, view).dequantize(), want)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_are_read_as_float32(quantizer, dtype):
    x = sample(8, 4, 6, spread=1, signed=quantizer.signed).to(dtype)
    got, want = run(quantizer, x).dequantize(), run(quantizer, x.to(torch.float32)).dequantize()
    assert torch.equal(got, want)


@every
def test_the_largest_floats(quantizer):
    x = 3e38 * sample(9, 3, 8, spread=0, signed=quantizer.signed).clamp(-1, 1).abs()
    x[0, 0] = 3e38
    values = run(quantizer, x).dequantize(torch.float64)
    assert values.isfinite().all()
    assert values.abs().max() <= 4e38


@every
def test_json_round_trip_and_nearest(quantizer):
    assert from_dict(json.loads(json.dumps(to_dict(quantizer)))) == quantizer
    nearest = quantizer.nearest()
    assert not nearest.stochastic
    assert dataclasses.replace(nearest, rounding=quantizer.rounding) == quantizer


@every
def test_the_graph_ends_at_a_quantizer(quantizer):
    assert not run(quantizer, torch.rand(3, 4, requires_grad=True)).dequantize().requires_grad


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "SAWD"}, r"unknown quantizer 'SAWD' \(did you mean 'SAWB'\?\)"),
        ({"type": "MSEClip", "candidates": 0}, r"1 to 1024 candidates, not 0"),
        ({"type": "LearnedStep", "rate": 1}, r"LearnedStep takes float as rate, not 1"),
        ({"type": "LearnedStep", "rate": -0.5}, r"0 or more and below 1, not -0.5"),
        ({"type": "LogUnbiased", "bits": 7}, r"2 to 6 bits, not 7"),
        ({"type": "MXInt", "block": 0}, r"1 index or more, not 0"),
        ({"type": "MXInt", "scale": "cell"}, r"not 'cell' \(did you mean 'ceil'\?\)"),
        ({"type": "ZeroPoint", "axis": "0"}, r"ZeroPoint takes int | None as axis"),
    ],
)
def test_bad_settings_say_what(data, message):
    with pytest.raises(ValueError, match=message):
        from_dict(data)


@pytest.mark.parametrize("quantizer", [MXInt(4, axis=2), MXInt(4, axis=-1), ZeroPoint(4, axis=2)], ids=str)
def test_an_axis_that_the_tensor_lacks(quantizer):
    with pytest.raises(ValueError, match=r"of axis|along axis"):
        quantizer(torch.ones(3, 4))


def test_one_line_of_text():
    assert str(SAWB(4)) == "s4 SAWB"
    assert str(MSEClip(4, candidates=8)) == "s4 MSEClip(8 candidates)"
    assert str(LearnedStep(4)) == "s4 LearnedStep(rate 0.01)"
    assert str(LogUnbiased()) == "s4 LogUnbiased(7 octaves, stochastic)"
    assert str(BlockHouseholder(4, signed=False)) == "s4 BlockHouseholder"
    assert str(MXInt(8)) == "s8 MXInt(blocks of 32)"
    assert str(MXInt(8, axis=0, scale="ceil")) == "s8 MXInt(blocks of 32, axis 0, ceil)"
    assert str(ZeroPoint(4, axis=0)) == "u4 ZeroPoint(axis 0)"
