"""The training loop: `train` runs a Config in a run folder, pauses and goes on bit for bit.

What makes that exact: data order and augmentation are functions of (seed, epoch, batch); all other randomness comes
from torch's generators, whose state is saved; saving, evaluating, logging and plotting draw nothing from them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from subbyte import data
from subbyte.train.build import as_input, build_model, check_device, load_dataset, reproducible, resolve_threads
from subbyte.train.checkpoint import Checkpoint, Progress, load_model, restore_rng, rng_state
from subbyte.train.config import Config
from subbyte.train.display import Display
from subbyte.train.errors import CheckpointError, DivergedError
from subbyte.train.evaluate import StopRequested, evaluate
from subbyte.train.folder import RunFolder
from subbyte.train.measure import measure
from subbyte.train.metrics import Records
from subbyte.train.optim import (
    make_optimizer,
    make_schedule,
    optimizer_settings,
    optimizer_tensors,
    restore_optimizer,
)
from subbyte.train.stop import StopSwitch

_CHECKPOINT_SECONDS = 300.0  # how much work a crash may cost where no interval in steps is asked for


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended. Accuracies in 0..1 (None before the first epoch's end); seconds over all calls."""

    folder: RunFolder
    finished: bool
    reason: str
    epoch: int
    step: int
    test_accuracy: float | None
    test_loss: float | None
    best_accuracy: float | None
    best_epoch: int
    seconds: float
    integer_share: float | None


def train(
    config: Config,
    run_dir: str | os.PathLike[str],
    *,
    resume: bool = False,
    time_limit: float | None = None,
    checkpoint_every: int | None = None,
    keep_epochs: Collection[int] = (),
    weights: Path | None = None,
    download: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Trains `config` in `run_dir` to the end, or until `time_limit` seconds, Ctrl-C or SIGTERM, and checkpoints.

    A checkpoint is written at each epoch's end, when the run pauses, and every `checkpoint_every` steps (None: after
    five minutes); those after the epochs `keep_epochs` (from 1) stay as epoch-<n>. A new run begins with the model of
    the checkpoint `weights`, of any scheme (None: as it was built). With `resume` the run in the folder goes on from
    its last checkpoint, to the same final bits as an undisturbed run. Raises RunError, CheckpointError, DivergedError,
    data.DataError or ValueError.
    """
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(f"checkpoint_every is {checkpoint_every}; it must be at least 1 step")
    console = console or Console()
    folder = RunFolder(run_dir)
    if resume:
        folder.check_same_run(config)
    else:
        folder.check_new()
    check_device(config.device)
    config = dataclasses.replace(config, threads=resolve_threads(config.threads))
    with StopSwitch(time_limit) as switch, reproducible(config.seed, config.threads):
        expected = data.DatasetInfo.from_dict(folder.dataset_info()) if resume else None
        dataset = load_dataset(config, download=download, expected=expected)
        run = Run(config, folder, dataset, switch, console, checkpoint_every, keep_epochs)
        if weights is not None:
            load_model(run.model, Checkpoint.load(weights).model, weights)
        folder.path.mkdir(parents=True, exist_ok=True)
        with folder.locked():
            if resume:
                run.restore()
            else:
                folder.write_json(folder.dataset_file, dataset.info.to_dict())
                folder.write_json(folder.config_file, config.to_dict())
            return run.fit()


class Run:
    """The state of one run in memory: model, optimizer, schedule and position."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        dataset: data.Dataset,
        switch: StopSwitch,
        console: Console,
        checkpoint_every: int | None,
        keep_epochs: Collection[int] = (),
    ) -> None:
        self.config, self.folder, self.dataset, self.switch, self.console = config, folder, dataset, switch, console
        self.checkpoint_every, self.keep_epochs = checkpoint_every, keep_epochs
        self.device = torch.device(config.device)
        self.model = build_model(config, dataset.info)
        self.optimizer = make_optimizer(self.model, config)
        self.steps_per_epoch = data.num_batches(len(dataset.train_y), config.batch_size)
        self.schedule = make_schedule(self.optimizer, config, self.steps_per_epoch)
        frozen_steps = round(config.freeze_norms_epochs * self.steps_per_epoch)
        self.frozen_from = config.epochs * self.steps_per_epoch - frozen_steps
        self.progress = Progress()
        self._batches()  # refuses an impossible augmentation now, before a folder is made
        self.saved_at = time.monotonic()
        self.seconds_before = 0.0

    # Saving and restoring

    def restore(self) -> None:
        """Continues from the last checkpoint; where none was written yet, from the beginning."""
        path = self.folder.last
        if not path.exists():
            self.console.print(f"{self.folder.path} holds no checkpoint yet: starting from the beginning")
            return
        saved = Checkpoint.load(path)
        differences = self.config.differences(Config.from_dict(saved.config))
        if differences:
            raise CheckpointError(f"{path} belongs to a run with other settings: {'; '.join(differences)}")
        metrics_bytes = self.folder.metrics_file.stat().st_size if self.folder.metrics_file.exists() else 0
        if metrics_bytes < saved.progress.metrics_bytes:
            raise CheckpointError(
                f"{self.folder.metrics_file} has {metrics_bytes:,} bytes, but {path.name} was written after "
                f"{saved.progress.metrics_bytes:,}: rows are lost; put the file back"
            )
        load_model(self.model, saved.model, path)
        restore_optimizer(self.model, self.optimizer, saved.optimizer, saved.optimizer_settings)
        self.schedule.load_state_dict(saved.schedule)
        restore_rng(saved.rng)
        self.progress = saved.progress
        self.seconds_before = saved.progress.seconds

    def checkpoint(self, *also: str) -> None:
        """Writes `last`, and before it those of `also`: after a crash in between, the older last redoes them all."""
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise self._diverged(f"the parameter {name} is no longer finite after step {self.progress.step}")
        self.progress.metrics_bytes = self.records.sync()
        self.progress.seconds = self._seconds()
        saved = Checkpoint(
            model=self.model.state_dict(),
            progress=self.progress,
            config=self.config.to_dict(),
            optimizer=optimizer_tensors(self.model, self.optimizer),
            optimizer_settings=optimizer_settings(self.optimizer),
            schedule=self.schedule.state_dict(),
            rng=rng_state(),
        )
        for which in (*also, "last"):
            saved.save(self.folder.checkpoint(which))
        self.saved_at = time.monotonic()

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.switch.started

    # Training

    def fit(self) -> Outcome:
        """Trains to the end or to the first reason to pause."""
        progress, epochs = self.progress, self.config.epochs
        if progress.epoch == epochs:
            self.console.print(f"{self.folder.path} is finished already", highlight=False, soft_wrap=True)
        self.records = Records(self.folder, progress.metrics_bytes, self.console)
        try:
            with Display(self.console, epochs, self.steps_per_epoch, progress.step) as self.display:
                while progress.epoch < epochs:
                    reason = self._train_epoch() or self._finish_epoch()
                    if reason:
                        self.checkpoint()
                        self.records.plot(at_once=True)
                        return self._outcome(reason)
            self.records.plot(at_once=True)
            return self._outcome(None)
        finally:
            self.records.close()

    def _train_epoch(self) -> str | None:
        """The rest of the epoch; returns a reason to pause in the middle of it."""
        progress = self.progress
        self._train_mode()
        self.epoch_begun_at, self.epoch_images = time.monotonic(), 0
        if progress.batch == self.steps_per_epoch:  # paused between the last batch and the evaluation
            return None
        for x, y in self._batches():
            if progress.step == self.frozen_from:
                self._train_mode()
            self._step(x, y)
            reason = self.switch.reason()
            if reason:
                return reason
            if self._checkpoint_due():
                self.checkpoint()
        return None

    def _train_mode(self) -> None:
        """Train mode; batch norms that are frozen by now stay in eval mode."""
        self.model.train()
        if self.progress.step >= self.frozen_from:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                    module.eval()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What the epoch has left."""
        return data.batches(
            self.dataset,
            self.config.batch_size,
            train=True,
            seed=self.config.seed,
            epoch=self.progress.epoch,
            start=self.progress.batch,
            device=self.device,
            kind=self.config.augment,
        )

    def _step(self, x: Tensor, y: Tensor) -> None:
        config, progress = self.config, self.progress
        # The channels of a pixel lie together: what the kernels of convolutions and norms want, and torch's own too.
        with self._autocast():
            logits = self.model(as_input(x)).float()
        loss = F.cross_entropy(logits, y, label_smoothing=config.label_smoothing)
        loss_value = loss.item()
        if not math.isfinite(loss_value):
            raise self._diverged(f"the loss is {loss_value} at step {progress.step + 1}")
        rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        images, correct = len(y), int((logits.argmax(1) == y).sum())
        progress.batch += 1
        progress.step += 1
        progress.images += images
        progress.loss_sum += loss_value * images
        progress.correct += correct
        progress.window_images += images
        progress.window_loss_sum += loss_value * images
        progress.window_correct += correct
        self.epoch_images += images
        if progress.step % config.log_every == 0:
            self._log_step(rate)
        self.display.step(
            progress.epoch + 1,
            progress.step,
            images,
            progress.loss_sum / progress.images,
            progress.correct / progress.images,
        )

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        dtype = self.config.autocast
        return torch.autocast(self.device.type, getattr(torch, dtype)) if dtype else contextlib.nullcontext()

    def _checkpoint_due(self) -> bool:
        if self.checkpoint_every is not None:
            return self.progress.step % self.checkpoint_every == 0
        return time.monotonic() - self.saved_at >= _CHECKPOINT_SECONDS

    def _finish_epoch(self) -> str | None:
        """Evaluates, logs and checkpoints; returns a reason to pause before or after that."""
        progress = self.progress
        # A call that began here has to get past the evaluation, or a short time limit would never let the run go on.
        should_stop = self.switch.requested if self.epoch_images else lambda: False
        images_per_second = self.epoch_images / max(time.monotonic() - self.epoch_begun_at, 1e-9)
        try:
            evaluation = evaluate(
                self.model,
                self.dataset,
                batch_size=self.config.batch_size,
                device=self.device,
                should_stop=should_stop,
            )
        except StopRequested:
            return self.switch.reason()
        if not math.isfinite(evaluation.loss):
            raise self._diverged(f"the test loss is {evaluation.loss} after epoch {progress.epoch + 1}")
        row = {
            "kind": "epoch",
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "train_loss": progress.loss_sum / progress.images,
            "train_accuracy": progress.correct / progress.images,
            "test_loss": evaluation.loss,
            "test_accuracy": evaluation.top1,
            "seconds": round(self._seconds(), 3),
            "images_per_second": round(images_per_second, 1),
        }
        self.records.append(row)
        self.display.epoch(row)
        best = evaluation.top1 > progress.best_accuracy
        if best:
            progress.best_accuracy, progress.best_epoch = evaluation.top1, progress.epoch + 1
        progress.epoch += 1
        progress.batch, progress.images, progress.loss_sum, progress.correct = 0, 0, 0.0, 0
        kept = [f"epoch-{progress.epoch}"] if progress.epoch in self.keep_epochs else []
        self.checkpoint(*kept, *(["best"] if best else []))
        self.records.plot()
        return self.switch.reason() if progress.epoch < self.config.epochs else None

    def _diverged(self, what: str) -> DivergedError:
        rate = self.optimizer.param_groups[0]["lr"]
        kept = (
            f"The last good checkpoint is kept: {self.folder.last}."
            if self.folder.last.exists()
            else "No checkpoint had been written yet."
        )
        return DivergedError(
            f"{what} (epoch {self.progress.epoch + 1}, learning rate {rate:.3g}, scheme "
            f"{self.config.scheme.get('name', 'of your own')}). "
            f"Train again into a new --out with a lower --lr than {self.config.lr:g}, or with more bits. {kept}"
        )

    # Records

    def _log_step(self, rate: float) -> None:
        progress = self.progress
        self.records.append(
            {
                "kind": "step",
                "epoch": progress.epoch + 1,
                "step": progress.step,
                "lr": rate,
                "loss": progress.window_loss_sum / progress.window_images,
                "accuracy": progress.window_correct / progress.window_images,
                "seconds": round(self._seconds(), 3),
            }
        )
        progress.window_images, progress.window_loss_sum, progress.window_correct = 0, 0.0, 0

    def _outcome(self, reason: str | None) -> Outcome:
        progress, finished = self.progress, reason is None
        epochs = self.records.epochs()
        last: dict[str, Any] = epochs[-1] if epochs else {}
        return Outcome(
            folder=self.folder,
            finished=finished,
            reason=reason or "finished",
            epoch=progress.epoch,
            step=progress.step,
            test_accuracy=last.get("test_accuracy"),
            test_loss=last.get("test_loss"),
            best_accuracy=progress.best_accuracy if progress.best_epoch else None,
            best_epoch=progress.best_epoch,
            seconds=self._seconds(),
            integer_share=self._write_report() if finished else None,
        )

    def _write_report(self) -> float:
        """Writes report.json about one training batch, on a copy of the model; returns the counted integer share."""
        values = measure(self.model, self.dataset, self.config)
        self.folder.write_json(self.folder.report_file, values.to_dict())
        return values.integer_share or 0.0
