"""Calls at the edge that the fuzzer found kernels, wrappers or references wrong at, kept by name."""

from __future__ import annotations

import pytest
import torch

from subbyte import ops
from subbyte.backends import cpu

pytestmark = pytest.mark.skipif(bool(cpu.available()), reason=cpu.available())
subbyte = torch.ops.subbyte


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_sum_of_one_product_is_no_negative_zero(backend: str) -> None:
    """0 * -3 is -0 in floats, in which the references multiply; as an integer it is 0, and so is its output."""
    zero, minus = torch.zeros(1, 1, dtype=torch.int8), torch.full((1, 1), -3, dtype=torch.int8)
    one = torch.ones(1, 1)
    image, four = torch.zeros(1, 1, 1, 1, dtype=torch.int8), torch.ones(1, 1, 1, 1)
    window = [1, 1], [0, 0], [1, 1], 1
    with ops.use_backend(backend):
        outputs = [
            subbyte.scaled_matmul(zero, None, 4, True, 0, minus, None, 4, True, 0, one, one, None),
            subbyte.scaled_conv2d(image, None, 4, True, 0, image - 3, None, 4, True, 0, four, None, *window),
        ]
    assert [y.signbit().any().item() for y in outputs] == [False, False]


@pytest.mark.parametrize("shape", [(6, 0), (0, 6), (0, 0)], ids=str)
def test_norms_of_nothing_read_no_operand(shape: tuple[int, int]) -> None:
    q, gamma = torch.zeros(shape, dtype=torch.int8), torch.zeros(1, shape[1], dtype=torch.int8)
    stat, param = torch.ones(shape[0], 1), torch.ones(1, shape[1])
    with ops.use_backend("cpu"):
        y, k = subbyte.norm_apply(q, stat.long(), stat, 1, 6, gamma, param, param)
        dx = subbyte.norm_grad_apply(q, q, gamma, stat, stat, stat, stat, False)
    assert y.shape == k.shape == dx.shape == shape


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("extra", [-1, 1])
def test_unpacking_another_number_of_bytes_is_refused(backend: str, bits: int, extra: int) -> None:
    packed = torch.zeros(2 * bits + extra, dtype=torch.uint8)
    with ops.use_backend(backend), pytest.raises((ValueError, ops.BackendError)):
        subbyte.unpack_codes(packed, 16, bits, True)


def test_chunks_of_one_channel_of_a_channels_last_weight() -> None:
    """Long codes are summed in chunks of one channel, a view on which torch's own float32 convolution is wrong."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-15, 16, (3, 11, 13, 4), generator=generator).to(torch.int8)
    w = torch.randint(-63, 64, (7, 11, 5, 5), generator=generator).to(torch.int8)
    w, one = w.contiguous(memory_format=torch.channels_last), torch.ones(1, 1, 1, 1)
    shift = torch.zeros(1, 11, 1, 1, dtype=torch.uint8)  # of max_shift 8: a term needs 15 * 63 * 2^8 * 25
    want = torch.conv2d(x.double(), w.double() * 2.0**8, None, [1, 3], [4, 1], [2, 1])
    for backend in ("cpu", "reference"):
        with ops.use_backend(backend):
            y = subbyte.scaled_conv2d(x, None, 5, True, 0, w, shift, 7, True, 8, one, None, [1, 3], [4, 1], [2, 1], 1)
        assert torch.equal(y, want.float()), backend
