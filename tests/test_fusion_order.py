"""fuse_ keeps the order in which gradients of one tensor are added up, or leaves the step that would change it."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

import subbyte as sb
from subbyte.fusion import order

C = 8


class Readers(nn.Module):
    """A block whose input is also read before it, inside of it, and behind it; what they send back differs in size.

    between  readers between the last norm and the addition; late: between the addition and its ReLU
    """

    def __init__(self, before=0, between=0, late=0, after=0, residual=True, stem=True, alias=None) -> None:
        super().__init__()
        self.counts, self.residual, self.alias = (before, between, late, after), residual, alias
        self.stem = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), nn.ReLU()) if stem else nn.Identity()
        self.conv1, self.bn1 = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)
        self.conv2, self.bn2 = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)
        self.down = nn.Conv2d(C, C, 1)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before, between, late, after = self.counts
        x = self.stem(x)
        shared = {"contiguous": x.contiguous(), "dropout": self.drop(x), None: x}[self.alias]
        outputs = [torch.sin(shared * (0.3 + i)) for i in range(before)]
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        outputs += [torch.cos(shared * (1.7 + i)) for i in range(between)]
        y = y + (x if self.residual else self.down(x))
        outputs += [torch.tanh(shared * (0.11 + i)) for i in range(late)]
        y = torch.relu(y)
        outputs += [torch.sin(shared * (11.0 + i)) for i in range(after)]
        return sum(outputs, y)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(3)
    x = torch.randn(2, C, 6, 6, requires_grad=True)
    y = model(x)
    y.backward(torch.randn_like(y) * torch.logspace(-3, 3, C).view(1, C, 1, 1))
    return [y, x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


def pair(**readers) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = sb.quantize_(Readers(**readers), "int4")
    return model, sb.fuse_(copy.deepcopy(model))


def differences(plain: nn.Module, fused: nn.Module) -> int:
    return sum(not torch.equal(a, b) for a, b in zip(gradients(plain), gradients(fused), strict=True))


COUNTS = list(itertools.product((0, 1, 2), (0, 1, 2), (0, 1), (0, 1, 2)))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("stem", [True, False])
def test_gradients_are_the_same_bits_wherever_else_the_input_is_read(stem, residual):
    for counts in COUNTS:
        names = dict(zip(("before", "between", "late", "after"), counts, strict=True))
        assert differences(*pair(**names, residual=residual, stem=stem)) == 0, names


@pytest.mark.parametrize("alias", ["contiguous", "dropout"])
def test_a_tensor_under_two_names_is_one(alias):
    for counts in [(0, 1, 0, 1), (0, 0, 0, 2), (1, 1, 1, 1), (2, 0, 0, 0), (0, 2, 0, 0)]:
        names = dict(zip(("before", "between", "late", "after"), counts, strict=True))
        assert differences(*pair(**names, alias=alias)) == 0, names


def test_these_readers_do_tell_an_order_from_another(monkeypatch):
    """Without the check, some of the sums differ."""
    monkeypatch.setattr(order.Gradients, "of_chain", lambda *_: order.TOGETHER)
    assert differences(*pair(after=1)) > 0
    assert differences(*pair(between=1, after=1, residual=False)) > 0


def kernels(**readers) -> tuple[str, set[str]]:
    _, fused = pair(**readers)
    gradients(fused)
    return str(fused.subbyte_fusion), set(fused.conv1.record.kernels)


def test_where_the_order_allows_it_one_pass_adds_both_gradients():
    block = "conv1 - bn1 - conv2 - bn2 - add - ReLU"
    for readers, together in [({}, True), ({"before": 2}, True), ({"after": 1}, False)]:
        plans, ran = kernels(**readers)
        assert block in plans
        assert ("scaled_conv2d_grad_input_plus" in ran) is together, readers
    plans, ran = kernels(between=1, after=1)
    assert "conv1 - bn1 - conv2 - bn2\n" in plans
    assert "scaled_conv2d_grad_input" in ran


class Tied(nn.Module):
    """One weight in three convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(C, C, 3, padding=1, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(C) for _ in range(3))
        for conv in self.convs[1:]:
            conv.weight = self.convs[0].weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.relu(norm(conv(x)))
        return x


def test_a_parameter_of_three_layers():
    torch.manual_seed(0)
    model = sb.quantize_(Tied(), "int4")
    with pytest.raises(sb.fusion.NothingToFuse, match="its Parameter is that of 3 layers"):
        sb.fuse_(copy.deepcopy(model))
