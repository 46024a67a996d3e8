"""What one training step of a run does, counted and observed: the content of report.json and of `subbyte inspect`."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from subbyte import data
from subbyte.convert import Conversion, quantized_layers
from subbyte.report import MacCounter, Report, report
from subbyte.train.config import Config


def measure(model: nn.Module, dataset: data.Dataset, config: Config, timed: bool = False) -> Report:
    """The subbyte report on the run's first training batch. The model and torch's generators are left as they were.

    timed: each layer against torch's float layer, too.
    """
    x, y = next(
        data.batches(
            dataset,
            config.batch_size,
            train=True,
            seed=config.seed,
            epoch=0,
            device=config.device,
            kind=config.augment,
        )
    )
    loss_fn = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    if quantized_layers(model):
        return report(model, x, y, loss_fn, timed)
    return _float_report(model, x, y, loss_fn)


def _float_report(model: nn.Module, x: Tensor, y: Tensor, loss_fn: nn.Module) -> Report:
    """A float model has no layers to report on; its multiply-accumulates are counted all the same."""
    probe = copy.deepcopy(model).train()
    with MacCounter() as counter:
        loss_fn(probe(x), y).backward()
    return Report({}, Conversion(()), counter.integer_share, counter.integer, counter.floats)
