"""Every op gives the same bits with 1, 2 and 3 threads."""

import pytest
import torch

from op_calls import CALLS
from subbyte import ops


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def results(name: str, args: tuple) -> tuple[torch.Tensor, ...]:
    out = getattr(torch.ops.subbyte, name).default(*args)
    assert ops.last_kernel[name] == "reference"
    return out if isinstance(out, (tuple, list)) else (out,)


@pytest.mark.parametrize("name", CALLS)
def test_threads_do_not_show(threads, name):
    with ops.use_backend("reference"):
        for args in CALLS[name](12):
            threads(1)
            want = results(name, args)
            for n in (2, 3):
                threads(n)
                for got, wanted in zip(results(name, args), want, strict=True):
                    assert torch.equal(got, wanted)
                    assert got.stride() == wanted.stride()
