"""AdamW whose two moments are kept in 8 or 4 bits, by the libraries that do it (extra `optim`), as flat tensors.

8 bits: bitsandbytes, a scale for 256 values (Dettmers et al. 2022, arXiv 2110.02861). 4 bits: torchao, a scale for 128
values (Li et al. 2023, arXiv 2309.01507). Both keep a tensor of fewer than 4096 values in float32. Not here: the
arithmetic, which is theirs; the parameters stay ordinary float32 tensors.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_MISSING = "optimizer '{}' needs {}, which is not installed: pip install 'subbyte[optim]'"
_UNFIT = "optimizer '{}' needs a release of {} for torch {}; the one installed fails to import: {}"


def make_low_bit(name: str, groups: Iterable[dict[str, Any]], **settings: Any) -> torch.optim.Optimizer:
    """The optimizer called `name`, adamw8bit or adamw4bit; ImportError where its library is missing."""
    return {"adamw8bit": _adamw8bit, "adamw4bit": _adamw4bit}[name]()(groups, **settings)


class _Copied:
    """copy.deepcopy of an optimizer with its own attributes, which torch's Optimizer leaves out of a copy."""

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        twin = memo[id(self)] = type(self)(copy.deepcopy(self.param_groups, memo))
        twin.state.update(copy.deepcopy(dict(self.state), memo))
        return twin


@functools.cache
def _adamw8bit() -> Any:
    # It warns at import that a product of its own, which is not used here, will run without a faster kernel.
    log = logging.getLogger("bitsandbytes")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ImportError(_MISSING.format("adamw8bit", "bitsandbytes")) from error
    finally:
        log.setLevel(level)
    return type("AdamW8bit", (_Copied, AdamW8bit), {})


@functools.cache
def _adamw4bit() -> Any:
    """torchao's class with two habits changed: the rate is a float between steps, and a step is not compiled."""
    try:
        from torchao.optim import AdamW4bit
    except ImportError as error:
        raise ImportError(_MISSING.format("adamw4bit", "torchao")) from error
    except AttributeError as error:  # what newer torchaos end in with an older torch
        raise ImportError(_UNFIT.format("adamw4bit", "torchao", torch.__version__, error)) from error
    state = _state4bit()
    aten = torch.ops.aten

    # torchao leaves it out, and copy.deepcopy asks for it.
    @state.implements(aten.clone.default)
    def clone(func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return unflatten({part: tensor.clone() for part, tensor in flatten(args[0])}, args[0])

    class AdamW4bitEager(_Copied, AdamW4bit):
        def add_param_group(self, param_group: dict[str, Any]) -> None:
            rate = param_group.get("lr", self.defaults["lr"])
            super().add_param_group(param_group)
            self.param_groups[-1]["lr"] = rate  # a float: schedules then compute, and JSON keeps, exactly one number

        def step(self, closure: Any = None) -> Any:
            rates = [group["lr"] for group in self.param_groups]
            try:
                for group in self.param_groups:
                    group["lr"] = torch.tensor(group["lr"], dtype=torch.float32)
                # Compiling takes the better part of a minute for a ResNet-20 and a C++ compiler at run time.
                with torch.compiler.set_stance("force_eager"):
                    return super().step(closure)
            finally:
                for group, rate in zip(self.param_groups, rates):
                    group["lr"] = rate

    return AdamW4bitEager


def _state4bit() -> Any:
    from torchao.optim.subclass_4bit import OptimState4bit

    return OptimState4bit


def flatten(value: Any) -> Iterator[tuple[str, Tensor]]:
    """A value of an optimizer's state as (part, plain tensor): one part "", or those of a packed tensor.

    A whole number, bitsandbytes' step count, is an int64 tensor without axes. What is neither is left out.

    >>> [(part, tensor.item()) for part, tensor in flatten(7)]
    [('', 7)]
    """
    if isinstance(value, int):
        yield "", torch.tensor(value)
    elif hasattr(value, "__tensor_flatten__"):
        for part in value.__tensor_flatten__()[0]:
            yield part, getattr(value, part)
    elif isinstance(value, Tensor):
        yield "", value


def unflatten(parts: Mapping[str, Tensor], like: Tensor) -> Any:
    """The inverse of `flatten`, for a state of the parameter `like`: its shape and dtype belong to a packed tensor.

    >>> unflatten({"": torch.tensor(7)}, torch.zeros(2))
    7
    """
    if "" in parts:
        whole = parts[""]
        return whole.item() if whole.ndim == 0 and whole.dtype == torch.int64 else whole
    state = _state4bit()
    signed = bool((parts["qmap"] < 0).any())  # the first moment has a sign, the second doesn't
    block = parts["codes"].numel() * 2 // parts["scale"].numel()
    _, facts = state.zeros(like.shape, signed, block, dtype=like.dtype).__tensor_flatten__()
    return state.__tensor_unflatten__(parts, facts)
