"""RunFolder: the files of one run, and who may write them.

config.json         the Config                      metrics.jsonl      a row per log_every steps and per epoch
dataset.json        classes, sizes, normalization   curves.png         loss and accuracy against epoch
last.safetensors    the newest checkpoint           best.safetensors   the one with the highest test accuracy
report.json         what each layer did             events/            TensorBoard
epoch-<n>.safetensors   the checkpoints after epochs that were to be kept
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
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


@contextlib.contextmanager
def hold(path: Path) -> Iterator[bool]:
    """Locks a file or folder for this process while the block runs; False where another holds it, and no wait."""
    try:
        import fcntl
    except ImportError:  # no such locks on Windows, where two runs in one folder go unnoticed
        yield True
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            held = False
        yield held
    finally:
        os.close(handle)


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
        self.last = self.checkpoint("last")
        self.best = self.checkpoint("best")

    def checkpoint(self, which: str) -> Path:
        """The path of the `last` or the `best` checkpoint, or of one that was kept, `epoch-<n>`."""
        if not re.fullmatch(r"last|best|epoch-[1-9]\d*", which):
            raise RunError(f"unknown checkpoint '{which}'; it is 'last', 'best' or, where one was kept, 'epoch-<n>'")
        return self.path / f"{which}.safetensors"

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
        with hold(self.path) as held:
            if not held:
                raise RunError(f"{self.path} is in use by another process that trains into it")
            yield

    def _read(self, path: Path) -> dict[str, Any]:
        if not self.path.is_dir():
            raise RunError(f"there is no run folder {self.path}")
        if not path.is_file():
            raise RunError(f"{self.path} is no run folder: it has no {path.name}")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(f"{path} is no valid JSON ({error})") from error
