"""Every op, on the kernels and on the reference, gives the same whatever torch's default type and device are.

A kernel that got memory of the default type would write float32 numbers into halves or doubles, beside its end or as
other numbers; on the default device it would get no memory at all.
"""

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F

import subbyte as sb
from op_calls import CALLS
from subbyte import models, ops


@contextlib.contextmanager
def defaults(dtype: torch.dtype, device: str):
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


OTHERS = [(torch.float64, "cpu"), (torch.bfloat16, "cpu"), (torch.float32, "meta")]


def results(name: str, args: tuple) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        out = getattr(torch.ops.subbyte, name).default(*args)
    return out if isinstance(out, (tuple, list)) else (out,)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("name", CALLS)
def test_ops_do_not_take_defaults(name, backend):
    with ops.use_backend(backend):
        for args in CALLS[name](1):
            want, kernel = results(name, args), ops.last_kernel[name]
            for other in OTHERS:
                with defaults(*other):
                    got = results(name, args)
                    assert ops.last_kernel[name] == kernel
                for a, b in zip(got, want, strict=True):
                    assert (a.dtype, a.device, a.shape) == (b.dtype, b.device, b.shape), other
                    assert torch.equal(a.nan_to_num(), b.nan_to_num()), other


def step(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(1)
    F.cross_entropy(model(x), y).backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("recipe", ["int4", "int4 fused", "int6", "int8", "int4-wide", "int4-integer-only", "learned"])
def test_networks_do_not_take_defaults(recipe):
    torch.manual_seed(0)
    model = models.build("resnet8", 10)
    name, *fused = recipe.split()
    if name == "learned":
        scheme = sb.Scheme(layer=sb.LayerScheme(*(sb.LearnedStep(4),) * 2, sb.ShiftQuant(4, rounding="stochastic")))
    else:
        scheme = sb.Scheme.from_name(name)
    sb.quantize_(model, scheme)
    if fused:
        sb.fuse_(model)
    twins, x, y = [copy.deepcopy(model) for _ in OTHERS], torch.randn(4, 3, 16, 16), torch.arange(4)
    want = step(model, x, y)
    for twin, other in zip(twins, OTHERS, strict=True):
        with defaults(*other):
            got = step(twin, x, y)
        assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(got, want, strict=True)), other
