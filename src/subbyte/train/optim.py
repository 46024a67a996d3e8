"""The optimizer and the schedule a Config names, and their state as flat tensors keyed by parameter name.

Parameters are ordinary float tensors, so any optimizer serves every scheme; those that keep their state in few bits are
in lowbit.py, IntegerSGD is subbyte.optim's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from subbyte.optim import IntegerSGD
from subbyte.train.config import Config
from subbyte.train.lowbit import flatten, make_low_bit, unflatten

_WARMUP_START = 1e-3  # the first step's rate over lr: near zero, as LinearLR refuses zero itself


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: those that decay, and those with fewer than two axes, which don't.

    >>> groups = parameter_groups(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), 0.1)
    >>> [(g["weight_decay"], len(g["params"])) for g in groups]
    [(0.1, 1), (0.0, 3)]
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """SGD, IntegerSGD or a form of AdamW over the model's parameters."""
    groups = parameter_groups(model, config.weight_decay)
    if config.is_adamw:
        settings: dict[str, Any] = dict(lr=config.lr, betas=(config.momentum, 0.999))
        if config.optimizer == "adamw":
            return torch.optim.AdamW(groups, **settings)
        return make_low_bit(config.optimizer, groups, **settings)
    sgd = IntegerSGD if config.optimizer == "integer-sgd" else torch.optim.SGD
    return sgd(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def make_schedule(optimizer: torch.optim.Optimizer, config: Config, steps_per_epoch: int) -> lr_scheduler.LRScheduler:
    """The learning rate as a function of the optimizer step t = 0 .. T-1, with T = epochs * steps_per_epoch.

    With W = warm-up steps: cosine rises linearly over t < W, then is lr (1 + cos(pi (t - W) / (T - W))) / 2;
    onecycle is torch's OneCycleLR that peaks at W; constant is lr.
    """
    total = config.epochs * steps_per_epoch
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if config.schedule == "constant":
        return lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)
    if config.schedule == "onecycle":
        return lr_scheduler.OneCycleLR(
            optimizer, max_lr=config.lr, total_steps=total, pct_start=config.warmup_epochs / config.epochs
        )
    if warmup == 0:
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=total)
    with warnings.catch_warnings():
        # SequentialLR undoes the first step of each part, which torch takes for a step before the optimizer's own.
        warnings.simplefilter("ignore", UserWarning)
        return lr_scheduler.SequentialLR(
            optimizer,
            [
                lr_scheduler.LinearLR(optimizer, start_factor=_WARMUP_START, total_iters=warmup),
                lr_scheduler.CosineAnnealingLR(optimizer, T_max=total - warmup),
            ],
            milestones=[warmup],
        )


def _named(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter) in the order in which the optimizer's state_dict numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield names[id(parameter)], parameter


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as {"<parameter name>/<state key>": tensor}, a packed one as "<...>/<state key>:<part>"."""
    tensors = {}
    for name, parameter in _named(model, optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            for part, tensor in flatten(value):
                tensors[f"{name}/{key}:{part}" if part else f"{name}/{key}"] = tensor
    return tensors


def optimizer_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What the schedule may have changed in each parameter group: JSON values, which keep a float exactly."""
    return [
        {key: value for key, value in group.items() if key != "params" and isinstance(value, (int, float, list, tuple))}
        for group in optimizer.param_groups
    ]


def restore_optimizer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, Tensor],
    settings: list[dict[str, Any]],
) -> None:
    """Puts back what `optimizer_tensors` and `optimizer_settings` gave."""
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    for flat, tensor in tensors.items():
        name, _, key = flat.rpartition("/")
        key, _, part = key.partition(":")
        parts.setdefault((name, key), {})[part] = tensor
    numbered = {name: (i, parameter) for i, (name, parameter) in enumerate(_named(model, optimizer))}
    state: dict[int, dict[str, Any]] = {}
    for (name, key), values in parts.items():
        i, parameter = numbered[name]
        state.setdefault(i, {})[key] = unflatten(values, parameter)
    current = optimizer.state_dict()
    groups = [{**group, **saved} for group, saved in zip(current["param_groups"], settings)]
    for group in groups:
        if "betas" in group:
            group["betas"] = tuple(group["betas"])
    optimizer.load_state_dict({"state": state, "param_groups": groups})
