"""Which layers have an input that cannot be negative, by the structure of the model and never by its data.

The producer decides: behind a ReLU (or a sigmoid, or a pool or reshape of such) a code may be unsigned, which doubles
the levels. The graph is torch.fx's; a model that cannot be traced keeps signed activations, and report() says why.
A wrong "cannot be negative" would cut values off in silence, so everything here errs on the other side: functions and
modules are known by identity and exact type, a hook makes a sign unknown, what is changed in place loses its sign, and
an input counts only if it is nonnegative in train mode and in eval mode, with and without the defaults of forward.

Not seen: calls that do not go through model.forward, and hooks that are registered afterwards.
"""

from __future__ import annotations

import builtins
import inspect
import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from .nn import QuantizedLayer
from .tracing import hooked, may_mutate, trace

_NONNEGATIVE_MODULES = {nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Softmax, nn.Hardsigmoid}
_KEEPING_MODULES = {
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
    *(nn.AdaptiveMaxPool2d, nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d),
    *(nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool3d, nn.PixelShuffle),
    *(nn.Dropout1d, nn.Dropout3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.UpsamplingNearest2d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d),
}
_FRESH_MODULES = {
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm3d, nn.RMSNorm, nn.Bilinear, nn.Embedding, nn.MaxPool3d, nn.AvgPool3d),
}
"""Modules whose output shares no memory with their input (the others may)."""

_NONNEGATIVE: set[Any] = {
    *(torch.relu, torch.relu_, F.relu, F.relu6, torch.sigmoid, F.sigmoid, torch.softmax, F.softmax, F.hardsigmoid),
    *(torch.abs, operator.abs, builtins.abs, torch.square),
    *("relu", "relu_", "sigmoid", "softmax", "abs", "square"),
}
_POOLS: set[Any] = {
    *(F.avg_pool1d, F.avg_pool2d, torch.avg_pool1d, F.max_pool1d, torch.max_pool1d, F.max_pool2d, torch.max_pool2d),
    *(F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
}
_KEEPING: set[Any] = {
    *(torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.clone),
    *(torch.mean, torch.amax, torch.chunk, torch.split, operator.getitem, F.dropout, F.dropout2d, *_POOLS),
    *("flatten", "view", "reshape", "permute", "transpose", "contiguous", "squeeze", "unsqueeze", "mean", "to"),
    *("clone", "amax", "chunk", "split"),
}
_SUMS: set[Any] = {
    *(operator.add, operator.iadd, torch.add, operator.mul, operator.imul, torch.mul, torch.maximum),
    *("add", "add_", "mul", "mul_", "maximum"),
}
"""Not negative if every tensor and every number that goes in is not."""

_JOINS: set[Any] = {torch.cat, torch.concat}
_FRESH: set[Any] = {operator.add, torch.add, operator.mul, torch.mul, torch.cat, torch.concat, torch.relu, "add", "mul"}


def nonnegative_inputs(model: nn.Module) -> tuple[set[str], str]:
    """(names of modules whose every call has a first argument >= 0, "" or the reason why the model was not traced)."""
    if not list(model.children()):
        return set(), "a single module: its producer is not known"
    try:
        return set.intersection(*(_nonnegative_in(graph, model) for graph in _graphs(model))), ""
    except Exception as e:  # fx raises whatever the model's own code does with a Proxy
        said = str(e).splitlines()[0][:120] if str(e) else ""
        return set(), f"torch.fx cannot trace the model ({type(e).__name__}: {said})"


def _graphs(model: nn.Module) -> Iterator[torch.fx.Graph]:
    """In both modes, with proxies for every argument and with the defaults of forward."""
    parameters = inspect.signature(model.forward).parameters.values()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty and p.kind not in variable}
    for training in (True, False):
        for concrete in (None, defaults) if defaults else (None,):
            yield trace(model, training, concrete)


def _nonnegative_in(graph: torch.fx.Graph, model: nn.Module) -> set[str]:
    modules = dict(model.named_modules())
    sign: dict[torch.fx.Node, bool] = {}
    memory: dict[torch.fx.Node, set[torch.fx.Node]] = {}
    inputs: dict[str, bool] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            name = str(node.target)
            good = sign.get(_first(node), False) and not modules[name]._forward_pre_hooks
            inputs[name] = inputs.get(name, True) and good
        result = _is_nonnegative(node, modules, sign)
        shared = set().union(*(memory[n] for n in node.all_input_nodes))
        if not result and may_mutate(node, modules):
            for other in [n for n, m in memory.items() if m & shared]:
                sign[other] = False
        sign[node] = result
        memory[node] = {node} if _is_fresh(node, modules) else {node} | shared
    return {name for name, good in inputs.items() if good}


def _first(node: torch.fx.Node) -> Any:
    """What takes part as the input: the first argument, or the one named input."""
    return node.args[0] if node.args else node.kwargs.get("input")


def _is_nonnegative(node: torch.fx.Node, modules: dict[str, nn.Module], sign: dict[torch.fx.Node, bool]) -> bool:
    first = _first(node)
    kept = isinstance(first, torch.fx.Node) and sign.get(first, False)
    if node.op == "call_module":
        module = modules[str(node.target)]
        if hooked(module):  # a hook may change the sign
            return False
        if type(module) in _NONNEGATIVE_MODULES:
            return True
        return type(module) in _KEEPING_MODULES and kept and not getattr(module, "divisor_override", None)
    if node.op not in ("call_function", "call_method"):
        return False
    if "out" in node.kwargs:
        return False
    if node.target in _NONNEGATIVE:
        return True
    if node.target in _KEEPING:
        return kept and (node.target not in _POOLS or all(v >= 0 for v in _numbers(node)))
    if node.target is F.pad:
        value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
        return kept and (value is None or (isinstance(value, (int, float)) and value >= 0))
    everything = bool(node.all_input_nodes) and all(sign.get(n, False) for n in node.all_input_nodes)
    if node.target in _SUMS:
        return everything and all(v >= 0 for v in _numbers(node))
    return node.target in _JOINS and everything


def _numbers(node: torch.fx.Node) -> list[float]:
    """Every number among the arguments."""
    found: list[float] = []

    def look(value: Any) -> None:
        if isinstance(value, (int, float)):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            for v in value:
                look(v)

    look([*node.args, *node.kwargs.values()])
    return found


def _is_fresh(node: torch.fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Does the result surely share no memory with an input?"""
    if node.op == "call_module":
        module = modules[str(node.target)]
        plain = type(module) in _FRESH_MODULES or (
            type(module) in _NONNEGATIVE_MODULES and not getattr(module, "inplace", False)
        )
        return (plain or isinstance(module, QuantizedLayer)) and not hooked(module)
    return node.op in ("placeholder", "get_attr") or (node.target in _FRESH and "out" not in node.kwargs)
