"""From a Config to its model, and from a run folder to a trained one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subbyte import data, models
from subbyte.convert import quantize_, quantized_layers
from subbyte.fusion import NothingToFuse, fuse_
from subbyte.scheme import Scheme
from subbyte.train.checkpoint import Checkpoint, Progress, load_model
from subbyte.train.config import Config
from subbyte.train.errors import RunError
from subbyte.train.folder import RunFolder


def check_device(name: str) -> torch.device:
    """The torch device called `name`, or a ValueError where this machine hasn't got it."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device '{name}'; use cpu, cuda or cuda:<number>") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device '{name}' is not here: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA GPUs; "
            "use --device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device '{name}' is not supported; use cpu or cuda")
    return device


def build_model(config: Config, info: data.DatasetInfo) -> nn.Module:
    """The untrained model, quantized as the Config's scheme says and fused, on the Config's device."""
    model = models.build(
        config.model,
        info.num_classes,
        in_channels=info.in_channels,
        stem=config.stem,
        image_size=info.image_size,
    )
    scheme = Scheme.from_dict(config.scheme)
    if not scheme.is_torch:
        quantize_(model, scheme)
        if not scheme.integer_only:  # which is one step as a whole
            with contextlib.suppress(NothingToFuse):
                fuse_(model)
    return model.to(check_device(config.device))


@dataclass
class TrainedRun:
    """A run read back from its folder: the model carries the checkpoint's weights and is in eval mode."""

    folder: RunFolder
    config: Config
    info: data.DatasetInfo
    model: nn.Module
    progress: Progress

    @property
    def quantized(self) -> bool:
        """Whether the model has integer layers."""
        return bool(quantized_layers(self.model))


def load_run(run_dir: str | os.PathLike[str], *, checkpoint: str = "last", device: str | None = None) -> TrainedRun:
    """Reads a run folder's `last` or `best` checkpoint into its model, on `device` (default: the run's own)."""
    folder = RunFolder(run_dir)
    config = folder.config()
    if device is not None:
        config = Config.from_dict({**config.to_dict(), "device": device})
    info = data.DatasetInfo.from_dict(folder.dataset_info())
    path = folder.checkpoint(checkpoint)
    saved = Checkpoint.load(path)
    model = build_model(config, info)
    load_model(model, saved.model, path)
    return TrainedRun(folder, config, info, model.eval(), saved.progress)


@contextlib.contextmanager
def reproducible(seed: int, threads: int) -> Iterator[None]:
    """Seeds torch, fixes its CPU threads and allows only deterministic algorithms; undone at the end, save the seed."""
    # cuBLAS is deterministic only with a fixed workspace, and reads this when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    settings: Any = torch.utils.deterministic
    benchmark, fill = torch.backends.cudnn.benchmark, settings.fill_uninitialized_memory
    try:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False  # it picks algorithms by timing them
        # Filling each new tensor with NaN costs a pass over memory; it only helps to find reads of unwritten memory.
        settings.fill_uninitialized_memory = False
        torch.manual_seed(seed)
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        torch.backends.cudnn.benchmark = benchmark
        settings.fill_uninitialized_memory = fill


def resolve_threads(threads: int) -> int:
    """The number of CPU threads that 0 stands for: torch's own choice."""
    return threads or torch.get_num_threads()


def as_input(x: Tensor) -> Tensor:
    """A batch as training hands it to a model: images with their channels last, which the kernels read in place."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def load_dataset(
    config: Config,
    *,
    download: bool = False,
    data_dir: str | Path | None = None,
    expected: data.DatasetInfo | None = None,
) -> data.Dataset:
    """The Config's data set, on its device; data_dir in place of the Config's, RunError if it isn't as `expected`."""
    size = {} if config.image_size is None else {"image_size": config.image_size}
    folder = data_dir if data_dir is not None else config.data_dir
    dataset = data.load(config.task, folder, download=download, **size)
    if expected is not None and dataset.info != expected:
        raise RunError(
            f"the data set is not the one that the run was begun with: {len(dataset.classes)} classes of "
            f"{dataset.image_size} pixels here, {len(expected.classes)} of {expected.image_size} there, or other names "
            "or normalization (see dataset.json in the run folder); check --data-dir"
        )
    return dataset if config.device == "cpu" else dataset.to(config.device)
