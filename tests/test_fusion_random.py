"""Random networks, fused and not: the same outputs, gradients, running statistics and random numbers, bit for bit.

A network is a list of steps, each reading one or two of the tensors before it: branches, tensors with many readers,
additions in place, steps that return their input. Parameters differ by two decades, and some are frozen.
"""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import subbyte as sb

C = 8
LAYERS = ("norm", "norm", "depthwise", "block", "block", "block", "join", "conv", "dropout", "identity")
FUNCTIONS = {
    "add": lambda a, b: a + b,
    "add in place": lambda a, b: torch.sin(a).add_(b),
    "multiply": lambda a, b: a * torch.sigmoid(b),
    "relu": lambda a, _: torch.relu(a),
    "relu in place": lambda a, _: torch.relu_(torch.cos(a) * 1.5),
    "sine": lambda a, b: torch.sin(2 * a),
    "pool": lambda a, b: F.max_pool2d(a, 3, 1, 1),
}


class Step(nn.Module):
    """One step with layers. read: its two inputs, by number; end: a ReLU, one in place, or none."""

    def __init__(self, kind: str, draw: random.Random) -> None:
        super().__init__()
        self.kind, self.end = kind, draw.choice([nn.ReLU(), nn.ReLU(inplace=True), None])
        self.addition = draw.choice(["y + b", "b + y", "y += b"])
        size, bias, affine = draw.choice([1, 3]), draw.random() < 0.3, draw.random() < 0.85
        inputs = 2 * C if kind == "join" else C
        groups = C if kind == "depthwise" else 1
        self.conv = nn.Conv2d(inputs, C, size, padding=size // 2, bias=bias, groups=groups)
        self.bn = nn.BatchNorm2d(C, affine=affine)
        if kind == "block":
            self.conv2, self.bn2 = nn.Conv2d(C, C, 3, padding=1, bias=bias), nn.BatchNorm2d(C)
        self.same = nn.Identity() if kind == "identity" else nn.Dropout(draw.choice([0.0, 0.3]))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if self.kind in ("dropout", "identity"):
            return self.same(a)
        if self.kind == "conv":
            return self.conv(a)
        y = self.bn(self.conv(torch.cat([a, b], 1) if self.kind == "join" else a))
        if self.kind == "block":
            y = self.bn2(self.conv2(torch.relu(y)))
            if self.addition == "y += b":
                y += b
            else:
                y = y + b if self.addition == "y + b" else b + y
        return y if self.end is None else self.end(y)


class Net(nn.Module):
    """The sum of one to three of the tensors that its steps give."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self.steps, self.read = nn.ModuleDict(), []
        for i in range(draw.randint(3, 9)):
            kind = draw.choice([*LAYERS, *FUNCTIONS])
            a = draw.randint(max(0, i - 2), i)
            self.read.append((kind, a, draw.choice([a, draw.randint(0, i)])))
            if kind in LAYERS:
                self.steps[str(i)] = Step(kind, draw)
        self.outputs = draw.sample(range(1, len(self.read) + 1), draw.randint(1, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tensors = [x]
        for i, (kind, a, b) in enumerate(self.read):
            call = self.steps[str(i)] if kind in LAYERS else FUNCTIONS[kind]
            tensors.append(call(tensors[a], tensors[b]))
        return sum(tensors[i] * (1 + i) for i in self.outputs)


def network(seed: int) -> nn.Module | None:
    """A quantized network in train mode, some norms perhaps in eval mode; None if it has no layer to quantize."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    model = Net(draw)
    for p in model.parameters():
        p.data *= 10 ** draw.uniform(-1, 1)
        p.requires_grad_(draw.random() < 0.9)
    if not any(kind in LAYERS for kind, *_ in model.read):
        return None
    model.train()
    sb.quantize_(model, draw.choice(["int4", "int4", "int6", "int8", "int4-wide"]))
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d) and draw.random() < 0.05:
            m.eval()
    return model


def two_steps(model: nn.Module, seed: int) -> list[torch.Tensor | None]:
    """Outputs, gradients, buffers, and where torch's generator is then."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    layout = draw.choice([torch.channels_last, torch.contiguous_format])
    x = torch.randn(3, C, 5, 5).contiguous(memory_format=layout).requires_grad_(draw.random() < 0.6)
    found: list[torch.Tensor | None] = []
    for _ in range(2):
        y = model(x)
        if y.requires_grad:
            y.backward(torch.randn_like(y))
        found.append(y.detach())
    return [*found, x.grad, *(p.grad for p in model.parameters()), *model.buffers(), torch.random.get_rng_state()]


def equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("first", range(0, 120, 30))
def test_random_networks_bit_for_bit(first):
    chains = 0
    for seed in range(first, first + 30):
        model = network(seed)
        if model is None:
            continue
        fused = copy.deepcopy(model)
        try:
            sb.fuse_(fused)
        except sb.fusion.NothingToFuse:
            continue
        chains += len(fused.subbyte_fusion.chains)
        assert all(map(equal, two_steps(model, seed), two_steps(fused, seed))), f"{seed}: {fused.subbyte_fusion}"
    assert chains > 30
