"""The record of a run: rows of metrics.jsonl, and TensorBoard events and curves.png made from those rows.

A row has kind `step` (means over the last log_every steps) or `epoch` (means over the epoch, and the test set's).
Epochs count from 1. `seconds` and `images_per_second` are timings; everything else is the same in a repeated run.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from subbyte.train.folder import RunFolder
from subbyte.train.plots import plot_curves

TIMINGS = ("seconds", "images_per_second")
_PLOT_SECONDS = 5.0  # short epochs share a drawing of curves.png, which takes a few tenths of a second
_MISSING = "note: {} is not installed, so {}; pip install 'subbyte[plot]'"


class Records:
    """Appends rows, can go back to an earlier length, and keeps events and curves in step with the rows."""

    def __init__(self, folder: RunFolder, length: int, console: Console) -> None:
        """Drops what lies past `length` bytes of metrics.jsonl: rows written after the checkpoint that counts."""
        self._folder, self._console = folder, console
        self._file = open(folder.metrics_file, "ab")  # noqa: SIM115 - open for as long as the run
        self._file.truncate(length)
        self.rows = read_rows(folder.metrics_file)
        self._plotted_at, self._plotted = -math.inf, 0
        self._events = self._open_events()

    def append(self, row: dict[str, Any]) -> None:
        """Writes one row, visible to other processes at once."""
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()
        self.rows.append(row)
        self._add_scalars(row)

    def sync(self) -> int:
        """Brings the rows to the disk; returns the length of metrics.jsonl."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def epochs(self) -> list[dict[str, Any]]:
        """The rows of kind `epoch`."""
        return [row for row in self.rows if row["kind"] == "epoch"]

    def plot(self, *, at_once: bool = False) -> None:
        """Draws curves.png, unless it was drawn a moment ago; at_once: in any case."""
        due = at_once or time.monotonic() - self._plotted_at >= _PLOT_SECONDS
        if not due or len(self.epochs()) == self._plotted or self._plotted_at == math.inf:
            return
        self._plotted_at, self._plotted = time.monotonic(), len(self.epochs())
        try:
            plot_curves({"": self.rows}, self._folder.curves_file)
        except ImportError:
            self._plotted_at = math.inf  # one note is enough
            self._console.print(_MISSING.format("matplotlib", "no curves are drawn"), markup=False)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._events:
            self._events.close()

    def _open_events(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._console.print(_MISSING.format("tensorboard", "no events are written"), markup=False)
            return None
        # Written anew from the rows: a killed process leaves an event file that lacks some and has others too many.
        shutil.rmtree(self._folder.events_dir, ignore_errors=True)
        self._events = SummaryWriter(str(self._folder.events_dir))
        for row in self.rows:
            self._add_scalars(row)
        return self._events

    def _add_scalars(self, row: dict[str, Any]) -> None:
        if self._events:
            for name, value in row.items():
                if isinstance(value, float):
                    self._events.add_scalar(f"{row['kind']}/{name}", value, row["step"])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line cut off by a crash is left out."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows
