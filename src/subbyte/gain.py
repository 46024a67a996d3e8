"""Where a layer is too small to gain: each quantized layer against torch's own layer, timed on this machine.

    gain = seconds of torch's layer in floats / seconds of the quantized one, forward and backward, one layer at a time

Below some size, what a quantized layer does beside its products (ranges, codes, packing) costs more than they save.
Among kernels that give the same bits the choice is automatic; a layer in floats gives other numbers, so that choice is
the scheme's: fastest_here makes it one.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .convert import quantize_, quantized_layers
from .fusion import unfuse_
from .integer_only import IntegerOnly
from .nn import QuantizedLayer
from .nn.quantized import become_float
from .scheme import Scheme

LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Gain:
    """One layer's forward and backward, timed in turns: medians of the rounds.

    seconds, float_seconds  of the quantized layer, of torch's
    ratio                   float_seconds / seconds, the median of the rounds' ratios
    """

    seconds: float
    float_seconds: float
    ratio: float

    @property
    def slower(self) -> bool:
        """Is torch's layer faster?"""
        return self.ratio < 1

    def to_dict(self) -> dict[str, float]:
        """Plain data for JSON."""
        return {"seconds": self.seconds, "float_seconds": self.float_seconds, "ratio": self.ratio}


def gains(model: nn.Module, x: Any, seconds: float = 0.1) -> dict[str, Gain]:
    """Name -> Gain of each quantized layer that one training step of the model calls, on this machine's threads.

    x        a batch, or a tuple of arguments: each layer is timed on what it gets in model(x)
    seconds  spent on each layer, and at least 5 rounds

    Layers are timed by themselves: what fuse_ saves between them is not in it. The model, its buffers and torch's
    random state are left as they were. TypeError for a model that is not quantized or integer-only (its layers run as
    one network), ValueError for seconds that are not positive.
    """
    layers = quantized_layers(model)
    if not layers:
        raise TypeError("gains: the model is not quantized; call quantize_(model, scheme) first")
    if isinstance(model, IntegerOnly):
        raise TypeError("gains: an integer-only model runs as one network; there is no layer to time by itself")
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"seconds is a positive number, not {seconds}")
    probe = unfuse_(copy.deepcopy(model)).train()
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
        calls = _calls(probe, x)
        return {name: _compare(layer, *call, seconds) for name, (layer, call) in calls.items()}


def fastest_here(scheme: Scheme | str, model: nn.Module, x: Any, seconds: float = 0.1) -> Scheme:
    """The scheme with an override that leaves float each layer of the (float) model that is slower quantized here.

    Arguments as gains has them; the model stays as it is. A scheme made so holds for one machine and batch size: save
    it (to_json) to train the same network elsewhere. Don't ask it about a model for fuse_: a norm that is slower by
    itself is faster in a chain, and a float norm ends a chain.
    """
    scheme = Scheme.from_name(scheme) if isinstance(scheme, str) else scheme
    for name, gain in gains(quantize_(copy.deepcopy(model), scheme), x, seconds).items():
        if gain.slower:
            scheme = scheme.override(name, None)
    return scheme


def _calls(probe: nn.Module, x: Any) -> dict[str, tuple[QuantizedLayer, tuple[tuple, dict]]]:
    """Name -> (layer, the arguments of its first call in a training step), without hooks."""
    found: dict[str, tuple[QuantizedLayer, tuple[tuple, dict]]] = {}
    hooks = []

    def keep(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_(tensor.requires_grad)

    for name, layer in quantized_layers(probe).items():

        def hook(module: nn.Module, args: tuple, kwargs: dict, name: str = name) -> None:
            found.setdefault(name, (cast(QuantizedLayer, module), tree_map_only(Tensor, keep, (args, kwargs))))

        hooks.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    probe(*x) if isinstance(x, tuple) else probe(x)
    for handle in hooks:
        handle.remove()
    return found


def _compare(layer: QuantizedLayer, args: tuple, kwargs: dict, seconds: float) -> Gain:
    twin = copy.deepcopy(layer)
    become_float(twin)
    ours, floats = (_step(m, args, kwargs) for m in (layer, twin))
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < LEAST_ROUNDS:
        times.append((_seconds(ours), _seconds(floats)))
    mine, theirs = (statistics.median(t) for t in zip(*times, strict=True))
    return Gain(mine, theirs, statistics.median(f / q for q, f in times))


def _step(layer: nn.Module, args: tuple, kwargs: dict) -> Callable[[], None]:
    """Forward and backward of a layer on these arguments, run once already."""
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.requires_grad]
    wanted = given + [p for p in layer.parameters() if p.requires_grad]

    def outputs() -> list[Tensor]:
        return [t for t in tree_leaves(layer(*args, **kwargs)) if isinstance(t, Tensor) and t.requires_grad]

    gradients = [torch.randn_like(t) for t in outputs()]

    def run() -> None:
        out = outputs()
        if out:
            torch.autograd.grad(out, wanted, gradients, allow_unused=True)

    run()
    return run


def _seconds(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin
