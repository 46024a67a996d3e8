"""Training in several processes by torch's own wrappers: each gradient is the mean of those of the processes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import subbyte as sb
from subbyte import models
from subbyte.nn import ProductLayer

WORLD = 2

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no torch.distributed with gloo"
)


def backward(model: nn.Module, rank: int) -> None:
    """A step's gradients, by the images and the random numbers of a rank."""
    torch.manual_seed(rank)
    x, y = torch.randn(4, 3, 32, 32), torch.randint(10, (4,))
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()


def mean_gradients(model: nn.Module) -> list[torch.Tensor]:
    """As one process alone finds them."""
    found = []
    for rank in range(WORLD):
        twin = copy.deepcopy(model)
        backward(twin, rank)
        found.append([p.grad / WORLD for p in twin.parameters()])
    return [sum(gs[1:], gs[0]) for gs in zip(*found, strict=True)]


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)))


def whole(t: torch.Tensor) -> torch.Tensor:
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def process(rank: int, cases: list[tuple[Callable[[nn.Module], nn.Module], nn.Module]], meeting: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORLD)
    for wrap, model in cases:
        wanted = mean_gradients(model)
        wrapped = wrap(model)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
        backward(wrapped, rank)
        for (name, p), g in zip(wrapped.named_parameters(), wanted, strict=True):
            assert torch.equal(whole(p.grad), g), f"{wrap.__name__} of {type(model).__name__}: {name}"
        layers = [m for m in model.modules() if isinstance(m, ProductLayer)]
        assert {m.record.kernels["grad_weight"] for m in layers} == {"integer"}
        optimizer.step()
        backward(wrapped, rank)  # and once more, with the Parameters that the step has changed
    dist.destroy_process_group()


def test_each_process_has_the_mean_gradient(tmp_path: Path):
    """DistributedDataParallel and FSDP2, of layers one by one and of fused ones."""
    cases = []
    shards = hasattr(torch.cpu.Stream(), "record_event")  # without it, as in torch 2.6, FSDP2 runs on GPUs alone
    for wrap in (DistributedDataParallel, sharded) if shards else (DistributedDataParallel,):
        plain = sb.quantize_(models.build("resnet8", 10), "int4")
        cases += [(wrap, plain), (wrap, sb.fuse_(copy.deepcopy(plain)))]
    torch.multiprocessing.spawn(process, (cases, str(tmp_path / "meeting")), nprocs=WORLD)
