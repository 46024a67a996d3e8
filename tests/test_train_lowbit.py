"""AdamW with its state in 8 and 4 bits on quantized models: bytes, loss, the state's round trip, copies.

That a killed run with such an optimizer goes on bit for bit is in test_train.py.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import subbyte as sb
from subbyte.scheme import Scheme
from subbyte.train import Config
from subbyte.train.lowbit import flatten
from subbyte.train.optim import make_optimizer, optimizer_settings, optimizer_tensors, restore_optimizer

LOW_BIT = ["adamw8bit", "adamw4bit"]
ADAMW = ["adamw", *LOW_BIT]
for _library in ("bitsandbytes", "torchao"):
    pytest.importorskip(_library, reason="pip install 'subbyte[optim]'")

X = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
Y = torch.arange(64) % 8


def settings(name: str) -> Config:
    return Config.for_task("digits", scheme=Scheme.from_name("int4").to_dict(), optimizer=name, lr=2e-3)


def network() -> nn.Module:
    """Two weights of 2^14 and 2^15 values, whose states are packed; a weight and vectors that stay in float32."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.BatchNorm1d(128), nn.Linear(128, 8))
    return sb.quantize_(net, "int4")


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = F.cross_entropy(net(X), Y)
    loss.backward()
    optimizer.step()
    return loss.item()


def trained(name: str, steps: int) -> tuple[nn.Module, torch.optim.Optimizer, list[float]]:
    net = network()
    optimizer = make_optimizer(net, settings(name))
    return net, optimizer, [step(net, optimizer) for _ in range(steps)]


def state_bytes(net: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the state in memory; a table that several states share counts once."""
    return sum({t.data_ptr(): t.nbytes for t in optimizer_tensors(net, optimizer).values()}.values())


def assert_equal_models(a: nn.Module, b: nn.Module) -> None:
    for (name, p), q in zip(a.named_parameters(), b.parameters()):
        assert torch.equal(p, q), name


@pytest.mark.parametrize(("name", "bits", "share"), [("adamw8bit", 8, 0.30), ("adamw4bit", 4, 0.18)])
def test_the_state_is_really_low_bit(name: str, bits: int, share: float) -> None:
    net, optimizer, _ = trained(name, 1)
    codes = {key: t for key, t in optimizer_tensors(net, optimizer).items() if t.dtype == torch.uint8}
    assert sum(t.nbytes for t in codes.values()) == 2 * (2**14 + 2**15) * bits // 8  # two moments
    assert {key.partition("/")[0] for key in codes} == {"0.weight", "2.weight"}
    assert state_bytes(net, optimizer) <= share * state_bytes(*trained("adamw", 1)[:2])


@pytest.mark.parametrize("name", LOW_BIT)
def test_the_loss_falls_as_with_float32_states(name: str) -> None:
    steps = 25
    reference, _, expected = trained("adamw", steps)
    net, _, losses = trained(name, steps)
    assert losses[0] == expected[0]  # the same network and noise, before any step
    assert expected[-1] < 0.25 * expected[0]
    assert losses[-1] < 0.25 * losses[0]
    assert not torch.equal(net[0].weight, reference[0].weight)  # rounding the state does change the run


@pytest.mark.parametrize("name", LOW_BIT)
def test_every_product_is_still_an_integer_one(name: str) -> None:
    net, _, _ = trained(name, 2)
    assert sb.report(net, X, Y, nn.CrossEntropyLoss()).integer_share == 1.0


@pytest.mark.parametrize("name", ADAMW)
def test_a_restored_optimizer_goes_on_bit_for_bit(name: str) -> None:
    net, optimizer, _ = trained(name, 3)
    optimizer.param_groups[0]["lr"] = 0.0123  # as a schedule does
    tensors = {key: t.clone() for key, t in optimizer_tensors(net, optimizer).items()}
    assert all(type(t) is Tensor for t in tensors.values())
    again = network()
    again.load_state_dict(net.state_dict())
    other = make_optimizer(again, settings(name))
    restore_optimizer(again, other, tensors, json.loads(json.dumps(optimizer_settings(optimizer))))
    for a, b in ((net, optimizer), (again, other)):
        torch.manual_seed(5)
        for _ in range(3):
            step(a, b)
    assert_equal_models(net, again)
    left, right = optimizer_tensors(net, optimizer), optimizer_tensors(again, other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("name", ADAMW)
def test_a_deep_copy_trains_alike_and_apart(name: str) -> None:
    net, optimizer, _ = trained(name, 2)
    kept = {key: t.clone() for key, t in optimizer_tensors(net, optimizer).items()}
    twin, twin_optimizer = copy.deepcopy((net, optimizer))
    for _ in range(2):
        torch.manual_seed(7)
        step(twin, twin_optimizer)
    assert all(torch.equal(t, kept[key]) for key, t in optimizer_tensors(net, optimizer).items())
    for _ in range(2):
        torch.manual_seed(7)
        step(net, optimizer)
    assert_equal_models(net, twin)


@pytest.mark.parametrize("name", LOW_BIT)
def test_a_rate_stays_the_float_that_was_given(name: str) -> None:
    _, optimizer, _ = trained(name, 1)
    assert [group["lr"] for group in optimizer.param_groups] == [2e-3, 2e-3]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]


def test_the_libraries_own_optimizers_in_a_loop_of_ones_own() -> None:
    from bitsandbytes.optim import AdamW8bit
    from torchao.optim import AdamW4bit

    for kind in (AdamW8bit, AdamW4bit):
        net = network()
        optimizer = kind(net.parameters(), lr=2e-3)
        with torch.compiler.set_stance("force_eager"):
            losses = [step(net, optimizer) for _ in range(15)]
        assert losses[-1] < 0.5 * losses[0]
        assert any(part.dtype == torch.uint8 for v in optimizer.state[net[0].weight].values() for _, part in flatten(v))


@pytest.mark.parametrize(("name", "package"), [("adamw8bit", "bitsandbytes"), ("adamw4bit", "torchao")])
def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    from subbyte.train import lowbit

    getattr(lowbit, f"_{name}").cache_clear()
    for module in [m for m in sys.modules if m.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"'{name}' needs {package}, .*pip install 'subbyte\[optim\]'"):
        make_optimizer(nn.Linear(2, 2), settings(name))


def test_a_library_that_does_not_fit_this_torch_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from subbyte.train import lowbit

    lowbit._adamw4bit.cache_clear()
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").write_text("raise AttributeError('no register_constant')")
    for module in [m for m in sys.modules if m.partition(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"'adamw4bit' needs a release of torchao for torch .*no register_constant"):
        make_optimizer(nn.Linear(2, 2), settings("adamw4bit"))
