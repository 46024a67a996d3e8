"""What a training run shows: a progress bar on a terminal, plain lines elsewhere (logs, pipes)."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_BAR_WIDTH = 12  # so that the whole line fits into 80 columns
_LINE_SECONDS = 60.0  # off a terminal, how often a line tells that a long epoch goes on


class Display:
    """Shows steps and epochs of one run; use as a context manager."""

    def __init__(self, console: Console, epochs: int, steps_per_epoch: int, step: int) -> None:
        self.console, self.epochs, self.steps_per_epoch, self.total = (
            console,
            epochs,
            steps_per_epoch,
            epochs * steps_per_epoch,
        )
        self._started, self._images, self._line_at = time.monotonic(), 0, time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
                BarColumn(bar_width=_BAR_WIDTH),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.3f} acc {task.fields[accuracy]:.1%}"),
                TextColumn("{task.fields[speed]:.0f} images/s ETA"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(
                "", total=self.total, completed=step, epoch=1, loss=float("nan"), accuracy=0.0, speed=0.0
            )

    def __enter__(self) -> Display:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def note(self, text: str) -> None:
        """One line above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def step(self, epoch: int, step: int, images: int, loss: float, accuracy: float) -> None:
        """After a step: epoch from 1, means over the epoch so far."""
        now = time.monotonic()
        self._images += images
        speed = self._images / max(now - self._started, 1e-9)
        if self._bar:
            self._bar.update(self._task, completed=step, epoch=epoch, loss=loss, accuracy=accuracy, speed=speed)
        elif now - self._line_at >= _LINE_SECONDS:
            self._line_at = now
            self.note(
                f"epoch {epoch}/{self.epochs}  step {step}/{self.total}"
                f"  loss {loss:.4f}  acc {accuracy:.2%}  {speed:.0f} images/s"
            )

    def epoch(self, row: dict[str, Any]) -> None:
        """After an epoch: its row of metrics.jsonl, as a line."""
        self._line_at = time.monotonic()
        self.note(
            f"epoch {row['epoch']:>{len(str(self.epochs))}}/{self.epochs}"
            f"  train loss {row['train_loss']:.4f} acc {row['train_accuracy']:.2%}"
            f"  test loss {row['test_loss']:.4f} acc {row['test_accuracy']:.2%}"
            f"  {row['images_per_second']:.0f} images/s"
        )
