"""Suite step: whole training steps, optimizer included: gradients cleared, forward, loss, backward, update.

Networks as in subbyte.models (SGD with momentum) and torch's Transformer encoder (AdamW, no dropout); the update is
torch's fused one, for all of them but integer-only networks, which have IntegerSGD. Under bf16 and fp16 the forward is
autocast; gradients of weights and update are float32. Ours runs in float32 between layers, and autocast to bf16.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subbyte import models
from subbyte.bench import evidence, impls
from subbyte.bench.timing import Candidate, Case, Prepared, Trial
from subbyte.convert import quantize_
from subbyte.integer_only import IntegerOnly
from subbyte.optim import IntegerSGD
from subbyte.report import MacCounter

Batch = tuple[Tensor, Tensor]
_HALF_SECONDS = 3.0  # a step in fp16 that would take longer is not waited for


@dataclass(frozen=True)
class Task:
    """A network, a batch and the rest of a step.

    layouts   memory formats to choose from
    allowed   float products that stay float in ours
    linears   whether Linears make up the network, so that torchao's int8 training means something
    integers  the optimizer of an integer-only network, None where integer-only does not know the layers
    """

    make: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Callable[..., torch.optim.Optimizer]
    layouts: dict[str, torch.memory_format]
    allowed: Collection[str] = ()
    linears: bool = False
    integers: Callable[..., torch.optim.Optimizer] | None = None


def _images(n: int, size: int, classes: int) -> Batch:
    return torch.randn(n, 3, size, size), torch.randint(classes, (n,))


def _classifier(name: str, n: int, size: int, classes: int) -> Task:
    settings: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}
    return Task(
        partial(models.build, name, classes, image_size=size),
        partial(_images, n, size, classes),
        F.cross_entropy,
        partial(torch.optim.SGD, **settings, fused=True),
        impls.LAYOUTS,
        integers=partial(IntegerSGD, **settings),
    )


def encoder(width: int, heads: int, layers: int) -> nn.Module:
    """torch's Transformer encoder, feed-forward 4 times as wide, without dropout."""
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def _encoder_task(width: int, heads: int, layers: int, sequences: int, tokens: int) -> Task:
    return Task(
        partial(encoder, width, heads, layers),
        lambda: (torch.randn(sequences, tokens, width), torch.randn(sequences, tokens, width)),
        F.mse_loss,
        partial(torch.optim.AdamW, lr=1e-4, fused=True),
        {"": torch.contiguous_format},
        evidence.ATTENTION,
        linears=True,
    )


RESNET18 = "ResNet-18/CIFAR b32"
ENCODER = "Transformer encoder d512 L4 h8 16x128"
TASKS = {
    "ResNet-20 b128": _classifier("resnet20", 128, 32, 10),
    RESNET18: _classifier("resnet18", 32, 32, 10),
    "ResNet-50/224 b8": _classifier("resnet50", 8, 224, 1000),
    ENCODER: _encoder_task(512, 8, 4, 16, 128),
}
QUICK_TASKS = {"smallcnn b8": _classifier("smallcnn", 8, 8, 10), "encoder d16": _encoder_task(16, 2, 1, 2, 8)}

FUSED = tuple(f"subbyte/{r}{impls.FUSED}" for r in impls.RECIPES)


def cases(quick: bool) -> list[Case]:
    tasks = QUICK_TASKS if quick else TASKS
    return [Case("step", name, partial(_candidates, task)) for name, task in tasks.items()]


def _candidates(task: Task) -> list[Candidate]:
    model, batch = task.make(), task.batch()
    ops = 2 * _multiply_accumulates(task, model, batch)
    found = [Candidate(name, partial(_ours, task, model, batch, name), ops) for name in (*impls.OURS, *FUSED)]
    if task.integers:
        found.append(Candidate(impls.INTEGER_ONLY, partial(_ours, task, model, batch, impls.INTEGER_ONLY), ops))
    for name, dtype in impls.FLOATS.items():
        found.append(Candidate(name, partial(_floats, task, model, batch, dtype, ops), ops))
    if task.linears:
        found.append(Candidate(impls.TORCHAO, partial(_torchao, task, model, batch), ops))
    return found


def _multiply_accumulates(task: Task, model: nn.Module, batch: Batch) -> int:
    """Of one step in floats, counted on shapes alone."""
    shapes = copy.deepcopy(model).to("meta")
    x, y = (t.to("meta") for t in batch)
    with MacCounter() as counter:
        task.loss(shapes(x), y).backward()
    return sum(counter.floats.values())


def train_step(task: Task, model: nn.Module, batch: Batch, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    """A function that makes one whole step of this model and returns the loss."""
    make = task.integers if task.integers and isinstance(model, IntegerOnly) else task.optimizer
    optimizer = make(model.parameters())
    x, y = batch

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with impls.autocast(dtype):
            out = model(x)
        loss = task.loss(out.float(), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def prepare_ours(task: Task, model: nn.Module, x: Tensor, name: str, layout: torch.memory_format) -> nn.Module:
    """A copy of the float model as one of our implementations trains it."""
    mine = copy.deepcopy(model).to(memory_format=layout)  # type: ignore[call-overload]
    quantize_(mine, impls.scheme(name))
    return impls.fuse(mine, x) if name.endswith(impls.FUSED) else mine


def _ours(task: Task, model: nn.Module, batch: Batch, name: str) -> Prepared:
    trials, found = [], {}
    for way, layout, dtype in impls.ways(task.layouts):
        x, y = _in_layout(batch, layout)
        mine = prepare_ours(task, model, x, name, layout)

        def first_step(mine: nn.Module = mine, x: Tensor = x, y: Tensor = y, dtype: torch.dtype = dtype) -> Tensor:
            with impls.autocast(dtype):
                out = mine(x)
            task.loss(out.float(), y).backward()
            return out

        found = evidence.of_training(
            mine, first_step, partial(_output, model, x), emulated=impls.emulated(name), allowed=task.allowed
        )
        trials.append(Trial(train_step(task, mine, (x, y), dtype), way))
    return Prepared(trials, found)


def _output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model)(x)


def _floats(task: Task, model: nn.Module, batch: Batch, dtype: torch.dtype, ops: int) -> Prepared:
    if dtype == torch.float16:
        impls.require_fp16(ops, _HALF_SECONDS)
    trials = []
    for way, layout in task.layouts.items():
        own = copy.deepcopy(model).to(memory_format=layout)  # type: ignore[call-overload]
        trials.append(Trial(train_step(task, own, _in_layout(batch, layout), dtype), way))
    return Prepared(trials)


def _torchao(task: Task, model: nn.Module, batch: Batch) -> Prepared:
    own = impls.torchao_linears(copy.deepcopy(model))

    def run() -> Tensor:
        out = own(batch[0])
        task.loss(out, batch[1]).backward()
        return out

    result, _, counter = evidence.watch(run)
    share = counter.integer_share
    error = evidence.require_error(result, _output(model, batch[0]))
    return Prepared([Trial(train_step(task, own, batch))], {"integer_share": share, "error": error})


def _in_layout(batch: Batch, layout: torch.memory_format) -> Batch:
    return batch[0].contiguous(memory_format=layout), batch[1]
