"""Evaluation of a model on the test set of its task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from subbyte import data
from subbyte.train.checkpoint import restore_rng, rng_state

_TOP5_ABOVE = 5  # with five classes or fewer, top-5 is always right


class StopRequested(Exception):
    """Raised inside `evaluate` when its should_stop says so."""


@dataclass(frozen=True)
class Evaluation:
    """Means over the test set: cross entropy (nats, without smoothing) and accuracies in 0..1."""

    images: int
    loss: float
    top1: float
    top5: float | None
    classes: list[str]
    class_images: list[int]
    class_accuracy: list[float | None]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: data.Dataset,
    *,
    batch_size: int,
    device: str | torch.device = "cpu",
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Runs the test set through `model` in eval mode. Training mode and torch's generators are left as they were."""
    training, rng = model.training, rng_state()
    num_classes = dataset.num_classes
    images, loss_sum, top5_sum = 0, 0.0, 0
    hits, counts = torch.zeros(num_classes, dtype=torch.int64), torch.zeros(num_classes, dtype=torch.int64)
    model.eval()
    try:
        for x, y in data.batches(dataset, batch_size, train=False, seed=0, epoch=0, device=device):
            if should_stop():
                raise StopRequested
            logits = model(x)
            loss_sum += F.cross_entropy(logits.double(), y, reduction="sum").item()
            right = logits.argmax(1) == y
            hits += torch.bincount(y[right].cpu(), minlength=num_classes)
            counts += torch.bincount(y.cpu(), minlength=num_classes)
            if num_classes > _TOP5_ABOVE:
                top5_sum += int((logits.topk(5, dim=1).indices == y[:, None]).any(1).sum())
            images += len(y)
    finally:
        model.train(training)
        restore_rng(rng)
    return Evaluation(
        images=images,
        loss=loss_sum / images,
        top1=int(hits.sum()) / images,
        top5=top5_sum / images if num_classes > _TOP5_ABOVE else None,
        classes=list(dataset.classes),
        class_images=counts.tolist(),
        class_accuracy=[h / n if n else None for h, n in zip(hits.tolist(), counts.tolist())],
    )
