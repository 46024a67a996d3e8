"""Checkpoints: everything a run needs to go on, as one safetensors file; nothing is pickled.

Tensors: `model/<state_dict key>`, `optimizer/<parameter name>/<state key>`, with `:<part>` behind it if it is packed,
`rng/cpu` and `rng/cuda:<i>` (uint8). The rest (position in the run, sums of the unfinished epoch, schedule, config) is
JSON in the file's header.
A file is written aside, synced and renamed, so that a crash at any moment leaves the old one or the new one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from subbyte.train.errors import CheckpointError

CHECKPOINT_VERSION = 1
_HEADER_KEY = "subbyte"
_SHOWN = 4  # names listed in an error message before it says how many more


@dataclass
class Progress:
    """Where a run stands, to the batch.

    epoch and batch count what is finished: batch batches of the epoch numbered epoch (from 0), step optimizer steps
    in all. The sums run over the unfinished epoch's images; the window sums over the steps since the last metrics row.
    metrics_bytes is the length of metrics.jsonl at this point, seconds the time spent so far.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    images: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    window_images: int = 0
    window_loss_sum: float = 0.0
    window_correct: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = 0
    metrics_bytes: int = 0
    seconds: float = 0.0


@dataclass
class Checkpoint:
    """The contents of a checkpoint file, tensors on the CPU."""

    model: dict[str, Tensor]
    progress: Progress
    config: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    optimizer_settings: list[dict[str, Any]] = field(default_factory=list)
    schedule: dict[str, Any] = field(default_factory=dict)
    rng: dict[str, Tensor] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Writes the file aside, syncs it to the disk and renames it."""
        tensors = {}
        for part in ("model", "optimizer", "rng"):
            for name, tensor in getattr(self, part).items():
                # A copy each, as safetensors refuses tensors that share memory (tied weights) or have gaps.
                tensors[f"{part}/{name}"] = tensor.detach().to("cpu", copy=True).contiguous()
        header = {
            "version": CHECKPOINT_VERSION,
            "progress": asdict(self.progress),
            "config": self.config,
            "optimizer_settings": self.optimizer_settings,
            "schedule": self.schedule,
        }
        aside = path.with_name(path.name + ".part")
        # Not save_file, whose files only their owner can read, whatever the umask.
        aside.write_bytes(save(tensors, metadata={_HEADER_KEY: json.dumps(header)}))
        publish(aside, path)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Reads a file written by `save`. A missing, truncated, foreign or too new file is a CheckpointError.

        The file is opened once: a training that still runs may put the next one in its place at any moment.
        """
        _must_exist(path)
        data = path.read_bytes()
        try:
            tensors = load(data)
        except SafetensorError as error:
            raise _corrupt(path, error) from error
        length = int.from_bytes(data[:8], "little")
        header = _checked(json.loads(data[8 : 8 + length]).get("__metadata__"), path)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "rng": {}}
        for key, tensor in sorted(tensors.items()):
            part, _, name = key.partition("/")
            parts[part][name] = tensor
        return cls(
            progress=Progress(**header["progress"]),
            config=header["config"],
            optimizer_settings=header["optimizer_settings"],
            schedule=header["schedule"],
            **parts,
        )


def read_header(path: Path) -> dict[str, Any]:
    """The JSON in a checkpoint's header, without reading the tensors."""
    _must_exist(path)
    try:
        # Not framework="pt", which opens the path a second time, when another file may be there.
        with safe_open(path, framework="np") as file:
            return _checked(file.metadata(), path)
    except SafetensorError as error:
        raise _corrupt(path, error) from error


def _must_exist(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")


def _corrupt(path: Path, error: SafetensorError) -> CheckpointError:
    return CheckpointError(
        f"{path} is truncated or corrupt ({path.stat().st_size:,} bytes; {error}); "
        "use another checkpoint of the run, or train again into a new --out"
    )


def _checked(metadata: Mapping[str, str] | None, path: Path) -> dict[str, Any]:
    """The header in a safetensors file's metadata, if this subbyte can read it."""
    text = (metadata or {}).get(_HEADER_KEY)
    if text is None:
        raise CheckpointError(f"{path} is a safetensors file, but not a subbyte checkpoint")
    header = json.loads(text)
    if header.get("version") != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {header.get('version')}; this subbyte reads version {CHECKPOINT_VERSION}"
        )
    known = {f.name for f in fields(Progress)}
    if set(header["progress"]) != known:
        raise CheckpointError(f"{path}: its progress record lacks {sorted(known - set(header['progress']))}")
    return header


def load_model(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """`model.load_state_dict(state)`, or a CheckpointError that names what doesn't fit, with the sizes."""
    own = model.state_dict()
    problems = _listed("missing from the file", [n for n in own if n not in state])
    problems += _listed("not in the model", [n for n in state if n not in own])
    problems += _listed(
        "of another shape",
        [
            f"{n} (file {tuple(state[n].shape)}, model {tuple(own[n].shape)})"
            for n in own
            if n in state and state[n].shape != own[n].shape
        ],
    )
    if problems:
        raise CheckpointError(
            f"{path} holds {len(state)} tensors, the model {len(own)}, and they don't fit: " + "; ".join(problems)
        )
    model.load_state_dict(state)


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{more}"]


def rng_state() -> dict[str, Tensor]:
    """The state of torch's generators, of the CPU and of each CUDA device in use."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for i, tensor in enumerate(torch.cuda.get_rng_state_all()):
            state[f"cuda:{i}"] = tensor
    return state


def restore_rng(state: Mapping[str, Tensor]) -> None:
    """Puts back what `rng_state` gave; GPUs that this machine lacks are left out."""
    for device, tensor in state.items():
        if device == "cpu":
            torch.set_rng_state(tensor)
        elif torch.cuda.is_available() and torch.device(device).index < torch.cuda.device_count():
            torch.cuda.set_rng_state(tensor, device)


def publish(aside: Path, path: Path) -> None:
    """Syncs the file `aside` to the disk, then gives it the name `path` in one step."""
    with open(aside, "rb") as file:
        os.fsync(file.fileno())
    os.replace(aside, path)
    if os.name == "posix":  # the new name lives in the folder, which is synced apart
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Writes a small text file aside and renames it."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    publish(aside, path)
