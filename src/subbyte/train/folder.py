"""RunFolder: the files of one run, and who may write them.

config.json         the Config                      metrics.jsonl      a row per log_every steps and per epoch
dataset.json        classes, sizes, normalization   curves.png         loss and accuracy against epoch
last.safetensors    the newest checkpoint           best.safetensors   the one with the highest test accuracy
report.json         what each layer did             events/            TensorBoard
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from subbyte.train.checkpoint import write_text
from subbyte.train.config import Config
from subbyte.train.errors import RunError


def to_json(values: Any) -> str:
    """Indented JSON in which NaN and the infinities, which JSON lacks, are null.

    >>> to_json([1.5, float("inf")]).split()
    ['[', '1.5,', 'null', ']']
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(values), indent=2, allow_nan=False)


class RunFolder:
    """Paths inside a run folder, and the checks before it is made or used again."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.dataset_file = self.path / "dataset.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.curves_file = self.path / "curves.png"
        self.report_file = self.path / "report.json"
        self.events_dir = self.path / "events"
        self.last = self.path / "last.safetensors"
        self.best = self.path / "best.safetensors"

    def checkpoint(self, which: str) -> Path:
        """The path of the `last` or the `best` checkpoint."""
        if which not in ("last", "best"):
            raise RunError(f"unknown checkpoint '{which}'; it is 'last' or 'best'")
        return self.last if which == "last" else self.best

    def check_new(self) -> None:
        """Raises where the folder already holds anything: a run never overwrites another."""
        if self.path.is_file():
            raise RunError(f"{self.path} is a file; choose another --out")
        if self.path.is_dir() and any(self.path.iterdir()):
            what = "a run" if self.config_file.is_file() else "other files"
            raise RunError(
                f"{self.path} exists already and holds {what}; add --resume to go on with it, or choose another --out"
            )

    def config(self) -> Config:
        """The Config of an existing run."""
        values = self._read(self.config_file)
        try:
            return Config.from_dict(values)
        except (TypeError, ValueError) as error:
            raise RunError(f"{self.config_file}: {error}") from error

    def dataset_info(self) -> dict[str, Any]:
        """The data set's description, as the run was begun with it."""
        return self._read(self.dataset_file)

    def check_same_run(self, config: Config) -> None:
        """Raises where `config` would compute something else than the run in this folder."""
        differences = config.differences(self.config())
        if differences:
            raise RunError(
                f"{self.path} was begun with other settings ({'; '.join(differences)}); "
                "leave them out to go on with that run, or choose another --out"
            )

    def write_json(self, path: Path, values: dict[str, Any]) -> None:
        """Writes one of the folder's JSON files in one step."""
        write_text(path, to_json(values) + "\n")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process; the system lets go of it even where the process is killed."""
        try:
            import fcntl
        except ImportError:  # no such locks on Windows, where two runs in one folder go unnoticed
            yield
            return
        handle = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"{self.path} is in use by another process that trains into it") from error
            yield
        finally:
            os.close(handle)

    def _read(self, path: Path) -> dict[str, Any]:
        if not self.path.is_dir():
            raise RunError(f"there is no run folder {self.path}")
        if not path.is_file():
            raise RunError(f"{self.path} is no run folder: it has no {path.name}")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(f"{path} is no valid JSON ({error})") from error
