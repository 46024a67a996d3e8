"""Models whose class is made at run time: copied, pickled, saved whole, and given back."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import subbyte as sb
from subbyte import models
from subbyte.nn.derived import Derived


class Untraceable(nn.Module):
    """fuse_ changes its part alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = models.build("resnet8", 10), nn.Linear(10, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x) if x.sum() > -1e9 else x)


def fused() -> nn.Module:
    return sb.fuse_(sb.quantize_(models.build("resnet8", 10), "int4"))


def fused_in_part() -> nn.Module:
    return sb.fuse_(sb.quantize_(Untraceable(), "int4"))


def integer_only() -> nn.Module:
    return sb.quantize_(models.build("resnet8", 10), "int4-integer-only")


def through_pickle(model: nn.Module, protocol: int = pickle.DEFAULT_PROTOCOL) -> nn.Module:
    return pickle.loads(pickle.dumps(model, protocol))


def through_torch(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def step(model: nn.Module) -> list[torch.Tensor]:
    """Loss, gradients and buffers of one step."""
    torch.manual_seed(1)
    x, y = torch.randn(4, 3, 32, 32), torch.arange(4)
    model.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    return [loss, *(p.grad for p in model.parameters()), *(b.clone() for b in model.buffers())]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


def derived(model: nn.Module) -> list[type]:
    return [type(m) for m in model.modules() if isinstance(m, Derived)]


@pytest.mark.parametrize("make", [fused, fused_in_part, integer_only])
@pytest.mark.parametrize("through", [through_pickle, lambda m: through_pickle(m, 2), through_torch, copy.deepcopy])
def test_a_copy_trains_as_the_model_does(make, through):
    model = make()
    twin = through(model)
    names, again = ([c.__name__ for c in derived(m)] for m in (model, twin))
    assert names
    assert names == again
    for _ in range(2):
        assert equal(step(model), step(twin))
    assert not any(a.data_ptr() == b.data_ptr() for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("make", [fused, integer_only])
def test_a_pickled_model_goes_back_to_its_own_class(make):
    model = through_pickle(make())
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    sb.dequantize_(sb.unfuse_(model))
    assert type(model) is models.ResNet
    assert not derived(model)
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())


def test_a_fused_copy_keeps_its_graphs_and_a_pickled_model_finds_them_again():
    model = fused()
    (cls,) = derived(model)
    assert derived(copy.deepcopy(model)) == [cls]
    one, two = through_pickle([model, model.eval()])
    assert one is two
    (other,) = derived(one)
    assert other is not cls
    assert other.forwards == {}
    one.train()
    step(one)
    assert len(other.forwards) == 1
    assert one.layer1[0].conv1.record.kernels["output"] == "integer"
    assert str(one.subbyte_fusion) == str(model.subbyte_fusion)


def test_models_pickled_together_that_share_a_class_still_do():
    model = fused()
    one, two = through_pickle([model, copy.deepcopy(model)])
    assert one is not two
    assert derived(one) == derived(two)


class Own(nn.Sequential):
    """A class with a way of its own to be pickled."""

    def __reduce__(self):
        return Own, tuple(self.children())


def test_a_class_with_its_own_way_keeps_it():
    model = sb.fuse_(sb.quantize_(Own(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)), "int4"))
    assert derived(model)
    assert type(through_pickle(model)) is Own
