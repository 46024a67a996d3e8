"""Networks and steps for the tests of the integer-only mode."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import subbyte as sb
from subbyte import backends, integer_only
from subbyte.float_ops import FloatOpCounter

RECIPE = "int4-integer-only"
EIGHT = dataclasses.replace(sb.Scheme.from_name("int8"), name="int8-integer-only", integer_only=True)
needs_library = pytest.mark.skipif("cpu" not in {b.NAME for b in backends.usable()}, reason="no C++ library")


class Net(nn.Module):
    """Every step there is: functions, methods and modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False)
        self.depthwise = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.pool, self.average = nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2)
        self.drop = nn.Dropout(0.25)
        self.hidden, self.last = nn.Linear(32, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + torch.relu(self.grouped(x))
        x = F.pad(self.depthwise(x)[:, :, ::1], (0, 0, 0, 0, 8, 8))
        x = self.average(self.pool(x).relu())
        x = F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)
        return self.last(self.drop(self.hidden(x)).relu())


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5))


def images(n: int = 16, channels: int = 3, size: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, size, size, generator=g), torch.randint(5, (n,), generator=g)


def build(make=Net, scheme=RECIPE, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return sb.quantize_(make(), scheme)


def step(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    model.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    return loss.detach()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters()}


# ------------------------------------------------------------------------------------------- no float anywhere


def counts(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> list[int]:
    """Float operations of the forward pass, the backward pass and the update."""
    with FloatOpCounter() as forward:
        out = model(x)
    (g,) = torch.autograd.grad(F.cross_entropy(out, y), out, retain_graph=True)
    with FloatOpCounter() as backward:
        out.backward(g)
    with FloatOpCounter() as update:
        optimizer.step()
    return [forward.total, backward.total, update.total]


def float_twin(model: nn.Module) -> nn.Module:
    """The same network in float64 with L1 norms without quantization, by the layers of sb.nn."""
    twin = copy.deepcopy(model)
    integer_only.detach(twin)
    sb.dequantize_(twin)
    none = sb.NormScheme("l1", input=None, normalized=None, saved=None, weight=None, gradient=None)
    sb.quantize_(twin, sb.Scheme("l1", sb.LayerScheme(), none))
    return twin.double()


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b).norm() / b.norm()).item()
