"""The graph of a model as torch.fx sees it, with every layer one node.

Used by signs.py (which inputs cannot be negative) and by fuse.py. Not here: what a graph means.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from torch import nn

from .nn import QuantizedLayer

IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul")


class _Proxy(torch.fx.Proxy):
    """fx records x -= y as x = x - y, which loses that everything that shares memory with x changes too."""


def _augmented(name: str) -> Callable:
    def run(self: _Proxy, other: Any):
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    return run


for _name in IN_PLACE:
    setattr(_Proxy, f"__{_name}__", _augmented(_name))


class LayerTracer(torch.fx.Tracer):
    """Looks through containers, stops at every layer of torch.nn and of this package, and where `stop` says so."""

    def __init__(self, stop: Callable[[nn.Module], bool] | None = None) -> None:
        super().__init__()
        self.stop = stop

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, QuantizedLayer) or m.__module__.startswith("torch.nn")
        if self.stop is not None and self.stop(m):
            return True
        return ours and not isinstance(m, (nn.Sequential, nn.ModuleList))

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        return _Proxy(node, self)


def trace(
    model: nn.Module,
    training: bool | None,
    concrete: dict[str, Any] | None = None,
    stop: Callable[[nn.Module], bool] | None = None,
) -> torch.fx.Graph:
    """The graph of model.forward in train or eval mode (None: as it is, part by part).

    concrete  values for arguments that are no proxies then
    stop      is this module one node, whatever is inside?

    The model, and torch's generator, are left as they were. Raises whatever the model's own code does with a Proxy.
    """
    before = [(m, dict(vars(m))) for m in model.modules()]  # a forward may store what it computes, here a Proxy
    try:
        for m, _ in before:
            m.training = m.training if training is None else training
        with torch.random.fork_rng(devices=[]):
            return LayerTracer(stop).trace(model, concrete)
    finally:
        for m, state in before:
            vars(m).clear()
            vars(m).update(state)


def hooked(module: nn.Module) -> bool:
    """Does the module have hooks of its own around forward?"""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def may_mutate(node: torch.fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Could this call change one of its inputs in place?"""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return bool(getattr(module, "inplace", False)) or hooked(module)
    if node.op == "call_method":
        return str(node.target).endswith("_")
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "_")
    foreign = hasattr(node.target, "__code__") and not str(node.target.__module__).startswith("torch")
    flagged = any(v is True for v in (*node.args, *node.kwargs.values()))  # inplace=True, by place or by name
    return name.endswith("_") or name in IN_PLACE or foreign or flagged or "out" in node.kwargs
