"""Study, Run: what a recipe declares. A run is one training (or one measurement) and gives one or more rows.

A recipe is one file in subbyte/recipes: a frozen dataclass Config with every setting, the EXPECTED figures below it, a
function from Config to runs, and the Study that holds them together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from subbyte.scheme import Scheme
from subbyte.study.expected import Expected
from subbyte.study.select import Row
from subbyte.study.tables import Column, Table
from subbyte.train import Config, RunFolder
from subbyte.train.config import PLACE_FIELDS

KEY_DIGITS = 12


class StudyError(ValueError):
    """A study can't be run as asked; the message says what was wrong and what to do."""

    exit_code = 2


@dataclass(frozen=True)
class Job:
    """What a run's `after` is given: the run, its folder (with the trained model where the run trains), its Config."""

    run: Run
    config: Config
    folder: RunFolder


@dataclass(frozen=True)
class Run:
    """One variant with one seed.

    variant, group  what is compared, and within what: runs of a group with equal seeds are pairs
    config          the training's every setting; its seed is the run's
    trains          False: `after` alone is the run (a measurement without a training)
    after           measures more once the training is done: gives what to add to the row, or several rows
    settings        what `after` depends on besides config: part of the row and of the key
    keep_epochs     checkpoints that `after` needs
    begins          the run with whose last weights the training begins (None: with random ones)
    """

    variant: str
    config: Config
    group: str = ""
    trains: bool = True
    after: Callable[[Job], Iterable[Mapping[str, Any]]] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    keep_epochs: tuple[int, ...] = ()
    begins: Run | None = None

    @property
    def seed(self) -> int:
        """Of the initial weights, the data's order and all rounding."""
        return self.config.seed

    def key(self) -> str:
        """A hash of everything that decides the run's rows, and of nothing else: where it ran is left out.

        Settings at their default are left out too, so that a new setting leaves the runs of before as they are.
        """
        config = essence(dataclasses.replace(self.config, scheme={}))
        config = {name: value for name, value in config.items() if name not in PLACE_FIELDS}
        scheme = essence(Scheme.from_dict(self.config.scheme))
        begins = [] if self.begins is None else [self.begins.key()]
        text = json.dumps([self.variant, self.group, config, scheme, essence(self.settings), *begins], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]

    @property
    def name(self) -> str:
        """What messages and folders call it: group, variant, seed."""
        return "-".join(part for part in (self.group, self.variant, f"seed{self.seed}") if part)

    def folder(self, runs: Path) -> RunFolder:
        """Where it lies under the study's folder of runs."""
        return RunFolder(runs / f"{self.name}-{self.key()}")


@dataclass(frozen=True)
class Study:
    """A question, the runs that answer it, and how the answer is shown.

    config, quick  the study's own settings, and those of a smoke run; both have `seeds`, a tuple of numbers
    runs           from such settings to the runs
    baseline       the variant that differences are taken to
    metric, factor, unit   what `value` is, and how tables print it
    columns        further columns of the table: means of other fields of the rows
    tables, plots  what the summary shows besides the table of variants; plots(rows, prefix) writes <prefix>-*.png and
                   gives the files
    notes          said in the summary above the tables
    """

    name: str
    title: str
    config: Any
    quick: Any
    runs: Callable[[Any], Iterable[Run]]
    expected: Sequence[Expected] = ()
    baseline: str = "float"
    metric: str = "test accuracy"
    factor: float = 100.0
    unit: str = "%"
    columns: Sequence[Column] = ()
    tables: Callable[[list[Row]], list[Table]] = lambda rows: []
    plots: Callable[[list[Row], Path], list[Path]] | None = None
    notes: str = ""

    def settings(self, *, quick: bool, seeds: Sequence[int] | None) -> Any:
        """The Config to run: with other seeds where some are asked for."""
        chosen = self.quick if quick else self.config
        return chosen if seeds is None else dataclasses.replace(chosen, seeds=tuple(seeds))


def essence(value: Any) -> Any:
    """Plain data that names a dataclass and those of its fields that differ from their defaults.

    >>> essence(Scheme.from_name("int4").first.weight)
    {'type': 'AbsMax'}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {"type": type(value).__name__}
        for f in dataclasses.fields(value):
            default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            if (item := getattr(value, f.name)) != default:
                plain[f.name] = essence(item)
        return plain
    if isinstance(value, Mapping):
        return {str(name): essence(item) for name, item in value.items()}
    return [essence(item) for item in value] if isinstance(value, (list, tuple)) else value


def training(task: str, scheme: Scheme | str, seed: int, **settings: Any) -> Config:
    """Config.for_task with a scheme (or the name of one): what most recipes build their runs from."""
    scheme = Scheme.from_name(scheme) if isinstance(scheme, str) else scheme
    return Config.for_task(task, scheme=scheme.to_dict(), seed=seed, **settings)
