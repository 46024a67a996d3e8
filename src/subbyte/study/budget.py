"""What a study will cost: the time of a step, measured now, times the steps that are left, in core-hours.

On a CPU the time is that of the processor, summed over threads: other work on the machine does not count in it. On a
GPU it is that of the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from subbyte import data
from subbyte.study.study import Run
from subbyte.study.tables import Table
from subbyte.train import Config
from subbyte.train.build import as_input, build_model, load_dataset, reproducible, resolve_threads
from subbyte.train.checkpoint import read_header
from subbyte.train.optim import make_optimizer

STEPS = 3  # timed after one that isn't; the least counts
SLOW_SECONDS = 10.0  # a first step that takes longer is its own measurement


@dataclass(frozen=True)
class Cost:
    """Of one run: core-seconds of a training step and of a test batch, and how many of each are left."""

    run: Run
    step: float
    test_batch: float
    steps: int
    test_batches: int
    threads: int

    @property
    def core_hours(self) -> float:
        """Of what is left of it."""
        return (self.step * self.steps + self.test_batch * self.test_batches) / 3600

    @property
    def hours(self) -> float:
        """core_hours over threads: the least that the clock will show."""
        return self.core_hours / self.threads


def budget(runs: Sequence[Run], configs: Sequence[Config], folders: Path) -> list[Cost]:
    """The cost of each training among `runs`, as `configs` place them; runs that differ in seed share a measurement."""
    measured: dict[str, tuple[float, float]] = {}
    datasets: dict[tuple, data.Dataset] = {}
    costs = []
    for run, config in zip(runs, configs, strict=True):
        if not run.trains:
            continue
        source = (config.task, config.data_dir, config.image_size, config.device)
        if source not in datasets:
            datasets[source] = load_dataset(config)
        dataset = datasets[source]
        alike = repr((source, config.model, config.stem, config.scheme, config.batch_size, config.optimizer))
        if alike not in measured:
            measured[alike] = step_seconds(config, dataset)
        steps = data.num_batches(len(dataset.train_y), config.batch_size)
        folder = run.folder(folders)
        done = read_header(folder.last)["progress"]["step"] if folder.last.exists() else 0
        epochs_left = config.epochs - done / steps
        test = data.num_batches(len(dataset.test_y), config.batch_size)
        left = config.epochs * steps - done, math.ceil(epochs_left * test)
        costs.append(Cost(run, *measured[alike], *left, resolve_threads(config.threads)))
    return costs


def step_seconds(config: Config, dataset: data.Dataset) -> tuple[float, float]:
    """(a training step, a test batch) of `config` in core-seconds, on the first batch of the data."""
    with reproducible(config.seed, resolve_threads(config.threads)):
        model = build_model(config, dataset.info)
        optimizer = make_optimizer(model, config)
        batch = data.batches(
            dataset, config.batch_size, train=True, device=config.device, kind=config.augment, workers=0
        )
        x, y = next(batch)
        x = as_input(x)

        def train_step() -> None:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

        step = core_seconds(train_step, config.device)
        model.eval()
        with torch.no_grad():
            return step, core_seconds(lambda: model(x), config.device)


def core_seconds(call: Callable[[], object], device: str) -> float:
    """The least of a few calls after one to warm up; that one alone where it is slow."""
    first = timed(call, device)
    return first if first > SLOW_SECONDS else min(timed(call, device) for _ in range(STEPS))


def timed(call: Callable[[], object], device: str) -> float:
    """Core-seconds of one call."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    begun = clock()
    call()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return clock() - begun


def budget_table(costs: Sequence[Cost]) -> Table:
    """A line for each variant, and the sum."""
    lines: dict[tuple[str, str], list[Cost]] = {}
    for cost in costs:
        lines.setdefault((cost.run.group, cost.run.variant), []).append(cost)
    rows = [
        [
            " ".join(filter(None, name)),
            str(len(group)),
            f"{1000 * group[0].step:.0f}",
            f"{sum(cost.steps for cost in group):,}",
            f"{sum(cost.hours for cost in group):.2f}",
            f"{sum(cost.core_hours for cost in group):.2f}",
        ]
        for name, group in lines.items()
    ]
    hours, core_hours = sum(cost.hours for cost in costs), sum(cost.core_hours for cost in costs)
    rows.append(["all", str(len(costs)), "", "", f"{hours:.2f}", f"{core_hours:.2f}"])
    return Table(
        "Budget",
        ("variant", "runs left", "core-ms a step", "steps left", "hours", "core-hours"),
        rows,
        text="From a step measured just now, in time of the processor; what is measured after a training comes on top.",
    )
