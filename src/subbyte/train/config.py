"""Config: every setting that decides the result of a run, and the defaults of each task.

What only decides when a run pauses or how it is shown (time limit, checkpoint interval, console) is not here: it is an
argument of `subbyte.train.train`. So two runs with equal Configs on one machine end in equal checkpoints.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from subbyte.scheme import Scheme
from subbyte.wording import unknown

CONFIG_VERSION = 1
OPTIMIZERS = ("sgd", "integer-sgd", "adamw", "adamw8bit", "adamw4bit")  # the last two: their state in 8 and 4 bits
AUTOCAST = ("bfloat16",)
SCHEDULES = ("cosine", "onecycle", "constant")
DEFAULT_TASK = "digits"
DEFAULT_SCHEME = "int4"

# What may differ between a run and its continuation: where it runs and where the data lie, not what is computed.
PLACE_FIELDS = ("device", "threads", "data_dir")

# The customary settings of each task with SGD, for nets trained from scratch. Every value can be overridden.
_TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": dict(model="smallcnn", epochs=15, batch_size=32, lr=0.05, weight_decay=1e-4, warmup_epochs=1.0),
    "mnist": dict(model="smallcnn", epochs=10, batch_size=128, lr=0.05, weight_decay=1e-4, warmup_epochs=0.5),
    "fashion-mnist": dict(model="smallcnn", epochs=20, batch_size=128, lr=0.05, weight_decay=5e-4, warmup_epochs=1.0),
    "cifar10": dict(model="resnet20", epochs=100, batch_size=128, lr=0.1, weight_decay=5e-4, warmup_epochs=1.0),
    "cifar100": dict(model="resnet20", epochs=100, batch_size=128, lr=0.1, weight_decay=5e-4, warmup_epochs=1.0),
    "imagefolder": dict(
        model="resnet18", epochs=90, batch_size=256, lr=0.1, weight_decay=1e-4, warmup_epochs=5.0, label_smoothing=0.1
    ),
}
_ADAMW_DEFAULTS: dict[str, Any] = dict(lr=1e-3, weight_decay=0.05, nesterov=False)
_ONECYCLE_WARMUP = 0.3  # the share of the run in which the rate rises, where warmup_epochs isn't given


@dataclass(frozen=True)
class Config:
    """The settings of one training run; `Config.for_task` fills in a task's defaults.

    lr is the highest rate of the schedule, reached after warmup_epochs (a fraction is allowed). momentum is SGD's
    momentum or AdamW's beta1. optimizer integer-sgd is optim.IntegerSGD, the default of an integer-only scheme: it
    takes lr and weight_decay to the nearest power of two. weight_decay acts on parameters with two or more axes: not on
    biases or norm layers. In the last freeze_norms_epochs (a fraction is allowed) batch norms go by their running
    statistics and leave them as they are: the weights settle on what evaluation will see. autocast bfloat16 is
    torch.autocast in training: floats between layers then have that type; evaluation and report stay float32. scheme is
    `Scheme.to_dict()`. stem is a ResNet's (None: by the image size), augment the augmentation's name (None: the
    data set's own), image_size the pixels a side of an imagefolder (None: 224). device is a torch device, threads
    the CPU threads of torch (0: torch's own choice, replaced by the number when the run begins). A metrics row is
    written every log_every steps and each epoch.

    >>> Config.for_task("digits", seed=1) == Config.from_json(Config.for_task("digits", seed=1).to_json())
    True
    """

    task: str
    model: str
    epochs: int
    batch_size: int
    lr: float
    stem: str | None = None
    image_size: int | None = None
    augment: str | None = None
    scheme: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    freeze_norms_epochs: float = 0.0
    label_smoothing: float = 0.0
    autocast: str | None = None
    seed: int = 0
    device: str = "cpu"
    threads: int = 0
    data_dir: str | None = None
    log_every: int = 50

    def __post_init__(self) -> None:
        def need(ok: bool, what: str) -> None:
            if not ok:
                raise ValueError(what)

        for name in ("epochs", "batch_size", "log_every"):
            value = getattr(self, name)
            need(isinstance(value, int) and value >= 1, f"{name} is {value}; it must be a whole number of at least 1")
        need(
            self.image_size is None or self.task == "imagefolder",
            f"image_size is for imagefolder; the images of {self.task} have a size of their own",
        )
        need(self.image_size is None or self.image_size >= 1, f"image_size is {self.image_size}; it must be at least 1")
        need(math.isfinite(self.lr) and self.lr > 0, f"lr is {self.lr}; it must be a finite number above 0")
        need(0 <= self.momentum < 1, f"momentum is {self.momentum}; it must lie in [0, 1)")
        need(
            math.isfinite(self.weight_decay) and self.weight_decay >= 0,
            f"weight_decay is {self.weight_decay}; it must be a finite number of at least 0",
        )
        need(0 <= self.label_smoothing < 1, f"label_smoothing is {self.label_smoothing}; it must lie in [0, 1)")
        need(self.autocast in (None, *AUTOCAST), unknown("autocast", str(self.autocast), AUTOCAST))
        need(
            self.autocast is None or not self.scheme.get("integer_only"),
            "autocast sets the type of floats between layers, and an integer-only network has none",
        )
        need(self.threads >= 0, f"threads is {self.threads}; it must be at least 1, or 0 for torch's own choice")
        need(0 <= self.seed < 2**63, f"seed is {self.seed}; it must lie in [0, 2**63)")
        need(
            self.optimizer in OPTIMIZERS,
            unknown("optimizer", self.optimizer, OPTIMIZERS),
        )
        need(self.schedule in SCHEDULES, unknown("schedule", self.schedule, SCHEDULES))
        need(
            not (self.nesterov and self.is_adamw),
            f"nesterov belongs to sgd; set nesterov=False for {self.optimizer}",
        )
        need(not (self.nesterov and self.momentum == 0), "nesterov needs a momentum above 0; set nesterov=False")
        need(
            0 <= self.warmup_epochs < self.epochs,
            f"warmup_epochs is {self.warmup_epochs}; it must lie in [0, epochs = {self.epochs})",
        )
        need(
            0 <= self.freeze_norms_epochs < self.epochs,
            f"freeze_norms_epochs is {self.freeze_norms_epochs}; it must lie in [0, epochs = {self.epochs})",
        )
        need(
            self.schedule != "onecycle" or self.warmup_epochs > 0,
            "onecycle rises for warmup_epochs, then falls: warmup_epochs must be above 0",
        )
        need(
            self.schedule != "constant" or self.warmup_epochs == 0,
            "the constant schedule has no warm-up: set warmup_epochs=0, or choose cosine",
        )

    @property
    def is_adamw(self) -> bool:
        """Whether the optimizer is a form of AdamW, whatever the bits of its state."""
        return self.optimizer.startswith("adamw")

    @classmethod
    def for_task(cls, task: str = DEFAULT_TASK, **overrides: Any) -> Config:
        """The defaults of `task`, with `overrides` on top (None: keep the default).

        >>> Config.for_task("cifar10", epochs=30).lr
        0.1
        >>> Config.for_task("cifar11")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: unknown task 'cifar11' (did you mean 'cifar10'?); known are digits, mnist, fashion-mnist, ...
        """
        if task not in _TASK_DEFAULTS:
            raise ValueError(unknown("task", task, _TASK_DEFAULTS))
        given = {name: value for name, value in overrides.items() if value is not None}
        settings: dict[str, Any] = {"task": task, **_TASK_DEFAULTS[task]}
        if given.get("scheme", {}).get("integer_only"):
            settings["optimizer"] = "integer-sgd"
        if given.get("optimizer", "").startswith("adamw"):
            settings.update(_ADAMW_DEFAULTS)
        if given.get("momentum") == 0:
            settings["nesterov"] = False
        epochs = given.get("epochs", settings["epochs"])
        if given.get("schedule") == "onecycle":
            settings["warmup_epochs"] = _ONECYCLE_WARMUP * epochs
        elif given.get("schedule") == "constant":
            settings["warmup_epochs"] = 0.0
        elif settings["warmup_epochs"] >= epochs:
            settings["warmup_epochs"] = epochs / 10  # a default made for a long run must not fill a short one
        return cls(**{**settings, **given})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with a version field."""
        return {"version": CONFIG_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The inverse of `to_dict`; refuses another version and unknown names."""
        values = dict(values)
        version = values.pop("version", None)
        if version != CONFIG_VERSION:
            raise ValueError(f"this configuration has version {version}; this subbyte reads version {CONFIG_VERSION}")
        known = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(unknown("setting", name, known))
        return cls(**values)

    def to_json(self) -> str:
        """`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Config:
        """The inverse of `to_json`."""
        return cls.from_dict(json.loads(text))

    def differences(self, other: Config) -> list[str]:
        """One line for each setting that decides the result and differs between the two.

        Schemes are compared as what they say: one from before a quantizer had a field says that field's default.
        """
        mine, theirs = (
            dataclasses.asdict(c) | {"scheme": c.scheme and Scheme.from_dict(c.scheme).to_dict()} for c in (self, other)
        )
        return [
            f"{name}: {mine[name]} here, {theirs[name]} there"
            for name in mine
            if name not in PLACE_FIELDS and mine[name] != theirs[name]
        ]


def default_run_dir(config: Config, scheme_name: str) -> Path:
    """Where a run goes when no folder is named: runs/<task>-<model>-<scheme>-seed<k>."""
    return Path("runs") / f"{config.task}-{config.model}-{scheme_name}-seed{config.seed}"
