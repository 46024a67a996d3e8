"""QTensor: its contract, its views, and codes at rest in ceil(n b / 8) bytes."""

import itertools

import pytest
import torch

from subbyte import ops
from subbyte.numerics import MAX_EXPONENT, IntFormat
from subbyte.ops.quantize import pack_codes, unpack_codes
from subbyte.qtensor import QTensor

S4 = IntFormat(4)
FORMATS = [IntFormat(bits, signed) for bits in range(2, 9) for signed in (True, False)]


@pytest.fixture(autouse=True)
def _reference():
    with ops.use_backend("reference"):
        yield


def codes_of(fmt: IntFormat, *shape: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(sum(shape) + fmt.bits)
    return torch.randint(fmt.qmin, fmt.qmax + 1, shape, generator=g).to(fmt.dtype)


def uint8(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)


ONE = torch.ones(1, 1)
CODES = torch.tensor([[1, -2, 3], [4, -5, 7]], dtype=torch.int8)

# ------------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize(("fmt", "dtype"), [(S4, torch.uint8), (S4, torch.int32), (IntFormat(4, False), torch.int8)])
def test_codes_have_the_dtype_of_their_format(fmt, dtype):
    with pytest.raises(TypeError, match=str(fmt)):
        QTensor(torch.zeros(2, 3, dtype=dtype), ONE, fmt)


@pytest.mark.parametrize(
    "scale", [ONE.double(), ONE.half(), torch.ones(1), torch.tensor(1.0), torch.ones(3, 1), torch.ones(1, 2)]
)
def test_scale_is_float32_and_broadcasts(scale):
    with pytest.raises(ValueError, match="scale must be float32"):
        QTensor(CODES, scale, S4)


@pytest.mark.parametrize(
    "shift",
    [torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.int32), uint8(0, 1, 2), torch.zeros(2, 3, dtype=torch.uint8)],
)
def test_shift_is_uint8_along_one_axis(shift):
    with pytest.raises(ValueError, match="shift must be uint8 along one axis"):
        QTensor(CODES, ONE, S4, shift, 2)


@pytest.mark.parametrize("max_shift", [-1, MAX_EXPONENT + 1])
def test_max_shift_is_within_the_widths(max_shift):
    with pytest.raises(ValueError, match="max_shift must be"):
        QTensor(CODES, ONE, S4, uint8(0, 1, 2)[None], max_shift)


def test_max_shift_needs_a_shift():
    with pytest.raises(ValueError, match="without shift"):
        QTensor(CODES, ONE, S4, None, 3)


# ---------------------------------------------------------------------------------------------------------- views


def test_dequantize_is_codes_times_scale_times_a_power_of_two():
    q = QTensor(CODES, torch.tensor([[0.3], [7.0]]), S4, uint8(0, 1, 23)[None], MAX_EXPONENT)
    scale = torch.tensor([[0.3], [7.0]]).double() * torch.tensor([[1.0, 0.5, 2.0**-23]], dtype=torch.float64)
    exact = CODES.double() * scale
    assert torch.equal(q.dequantize(torch.float64), exact)
    assert torch.equal(q.dequantize(), exact.float())  # one float32 multiplication of exact factors
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(q.dequantize(dtype), exact.float().to(dtype))
    assert (q.shape, q.device) == (CODES.shape, CODES.device)


def test_transpose_moves_codes_scale_and_shift_together():
    q = QTensor(CODES, torch.tensor([[0.3], [7.0]]), S4, uint8(0, 1, 2)[None], 2)
    assert torch.equal(q.T.dequantize(), q.dequantize().T)
    assert (q.T.scale.shape, q.T.shift.shape) == ((1, 2), (3, 1))
    assert q.T.codes.data_ptr() == q.codes.data_ptr()
    assert torch.equal(q.T.T.codes, q.codes)
    batched = QTensor(codes_of(S4, 5, 2, 3), torch.rand(5, 1, 1), S4)
    assert torch.equal(batched.T.dequantize(), batched.dequantize().mT)


def test_fold_shift_keeps_the_shift_of_the_axis_it_is_told_and_the_values_of_all():
    q = QTensor(CODES, torch.tensor([[0.3], [7.0]]), S4, uint8(0, 1, 2)[None], 2)
    for axis in (1, -1):
        assert q.fold_shift(axis) is q
    for axis in (0, -2):
        folded = q.fold_shift(axis)
        assert folded.shift is None
        assert folded.max_shift == 0
        assert folded.scale.shape == (2, 3)
        assert torch.equal(folded.dequantize(), q.dequantize())
    plain = QTensor(CODES, ONE, S4)
    assert plain.fold_shift(0) is plain


def test_varies_along_judges_by_shape():
    q = QTensor(CODES, torch.tensor([[0.3], [7.0]]), S4, uint8(0, 1, 2)[None], 2)
    assert q.varies_along(0) == (True, False)
    assert q.varies_along(1) == (False, True)
    assert q.varies_along(-1) == (False, True)


# -------------------------------------------------------------------------------------------------------- packing


def python_pack(codes: list[int], bits: int) -> list[int]:
    """The bit string as one Python integer: code i at bits b i .. b i + b - 1, little-endian."""
    string = sum((c & (1 << bits) - 1) << bits * i for i, c in enumerate(codes))
    return list(string.to_bytes((len(codes) * bits + 7) // 8, "little"))


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_pack_codes_of_every_width_and_length(fmt):
    for n in range(41):
        codes = codes_of(fmt, n)
        packed = pack_codes(codes, fmt.bits)
        assert ops.last_kernel["pack_codes"] == "reference"
        assert packed.dtype is torch.uint8
        assert packed.tolist() == python_pack(codes.tolist(), fmt.bits)
        assert len(packed) == ops.packed_bytes(n, fmt.bits) == -(-n * fmt.bits // 8)
        back = unpack_codes(packed, n, fmt.bits, fmt.signed)
        assert back.dtype is fmt.dtype
        assert torch.equal(back, codes)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_pack_every_code_beside_every_other(fmt):
    extremes = [fmt.qmin, fmt.qmax, 0, 1, fmt.qmin // 2]
    codes = torch.tensor([c for pair in itertools.product(extremes, repeat=3) for c in pair], dtype=fmt.dtype)
    every = torch.arange(fmt.qmin, fmt.qmax + 1).to(fmt.dtype)
    for t in (codes, every):
        assert torch.equal(unpack_codes(pack_codes(t, fmt.bits), len(t), fmt.bits, fmt.signed), t)


def test_four_bits_lie_low_nibble_first():
    packed = pack_codes(torch.tensor([1, -7, 5, -1, 3], dtype=torch.int8), 4)
    assert packed.tolist() == [0x91, 0xF5, 0x03]


def layouts(fmt: IntFormat):
    """(name, codes): contiguous, permuted, sliced, expanded and empty ones; True where the strides survive packing."""
    image = codes_of(fmt, 2, 3, 5, 4)
    matrix = codes_of(fmt, 5, 7)
    yield "contiguous", image, True
    yield "channels_last", image.contiguous(memory_format=torch.channels_last), True
    yield "transposed", matrix.T, True
    yield "permuted", image.permute(1, 0, 3, 2), True
    yield "dense slice at an offset", image[1:], True
    yield "holes", image[:, :, ::2], False
    yield "columns", matrix[:, 2:5], False
    yield "expanded", matrix[:1].expand(4, 7), False
    yield "scalar", matrix[0, 0], True
    yield "no rows", matrix[:0], False
    yield "no columns", matrix[:, :0], False
    yield "size one", matrix[:1, :1], True


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_pack_and_unpack_any_layout(fmt):
    for name, codes, keeps in layouts(fmt):
        q = QTensor(codes, torch.full([1] * codes.ndim, 0.25), fmt)
        packed = ops.pack(q)
        assert packed.packed.nbytes == -(-codes.numel() * fmt.bits // 8), name
        assert packed.nbytes == packed.packed.nbytes + 4
        back = ops.unpack(packed)
        assert torch.equal(back.codes, codes), name
        assert torch.equal(back.scale, q.scale)
        assert (back.format, back.shape) == (fmt, codes.shape)
        if keeps:
            assert back.codes.stride() == codes.stride(), name
    assert ops.last_kernel["unpack_codes"] == "reference"


def test_pack_keeps_the_shift_and_does_not_alias_the_codes():
    for bits in (4, 8):
        codes = codes_of(IntFormat(bits), 2, 3)
        q = QTensor(codes.clone(), ONE, IntFormat(bits), uint8(0, 1, 2)[None], 2)
        packed = ops.pack(q)
        q.codes.zero_()
        back = ops.unpack(packed)
        assert torch.equal(back.codes, codes)
        assert torch.equal(back.shift, q.shift)
        assert back.max_shift == 2
        assert packed.nbytes == packed.packed.nbytes + 4 + 3


# --------------------------------------------------------------------------------------------------------- narrow


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_narrow_rounds_half_to_even_and_clamps(fmt):
    every = torch.arange(fmt.qmin, fmt.qmax + 1).to(fmt.dtype)[None]
    q = QTensor(every, ONE * 0.5, fmt, torch.zeros(1, 1, dtype=torch.uint8), 3)
    for bits in range(2, 9):
        less = ops.narrow(q, bits)
        if bits >= fmt.bits:
            assert less is q
            continue
        drop = fmt.bits - bits
        small = IntFormat(bits, fmt.signed)
        assert less.format == small
        assert less.scale.item() == 0.5 * 2**drop
        want = [min(max(round(c / 2**drop), small.qmin), small.qmax) for c in every.flatten().tolist()]
        assert less.codes.flatten().tolist() == want
        assert less.max_shift == 3
