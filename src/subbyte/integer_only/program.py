"""From the graph of a model to the steps of an integer-only network: plain data, made when a model is quantized."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from ..nn import BatchNorm1d, BatchNorm2d, Conv2d, Linear
from ..nn.quantized import original_type
from ..tracing import hooked, trace
from . import norms, products, steps

MODULES: dict[type[nn.Module], Callable] = {
    **steps.MODULES,
    Linear: products.linear,
    Conv2d: products.conv2d,
    BatchNorm1d: norms.batch_norm,
    BatchNorm2d: norms.batch_norm,
}
"""Exact type -> its step."""

FUNCTIONS: dict[Any, Callable] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), steps.relu),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), steps.add),
    **dict.fromkeys((torch.flatten, "flatten"), steps.flatten),
    **dict.fromkeys((torch.reshape, "reshape", "view"), steps.reshape),
    **dict.fromkeys((torch.mean, "mean"), steps.mean),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), steps.max_pool),
    **dict.fromkeys((F.avg_pool2d,), steps.avg_pool),
    **dict.fromkeys((F.adaptive_avg_pool2d,), steps.adaptive_avg_pool),
    **dict.fromkeys((F.dropout,), steps.dropout),
    **dict.fromkeys((F.pad,), steps.pad),
    **dict.fromkeys(("contiguous",), steps.identity),
    operator.getitem: steps.index,
}
"""Function, or name of a method -> its step."""

_REFUSES = {products.linear: products.refuses, products.conv2d: products.refuses, norms.batch_norm: norms.refuses}

_INPLACE = "inplace"  # no step shares memory with another, so that it means nothing here


class UnsupportedError(ValueError):
    """A model has a node that integer-only does not know; the message names it and what to do."""


@dataclass(frozen=True)
class Ref:
    """The result of another node, by number."""

    node: int


@dataclass(frozen=True)
class Node:
    """One step.

    kind   "input"; "module" or "function", with its key into the tables above; "size", the shape of a tensor; "value",
           arithmetic of Python on sizes
    name   of the layer
    """

    kind: str
    key: Any
    name: str
    args: tuple
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Program:
    """A forward pass in order; node 0 is the input. parameters: names of those that the steps read."""

    nodes: tuple[Node, ...]
    output: int
    parameters: tuple[str, ...]


def compile_model(model: nn.Module, training: bool) -> Program:
    """The program of a quantized model in train or eval mode. UnsupportedError with the node, and what would serve."""
    try:
        graph = trace(model, training)
    except Exception as e:  # fx raises whatever the model's own code does with a Proxy
        said = str(e).splitlines()[0][:160] if str(e) else ""
        raise UnsupportedError(f"torch.fx cannot trace the model ({type(e).__name__}: {said}); {_ADVICE}") from e
    modules = dict(model.named_modules())
    numbers: dict[torch.fx.Node, int] = {}
    nodes: list[Node] = []
    parameters: dict[str, None] = {}
    tensors: set[int] = set()
    output = None
    for node in graph.nodes:
        if node.op == "placeholder":
            if nodes:
                if not node.users:
                    continue
                raise UnsupportedError(f"the model takes a second input, {node.target!r}; {_ADVICE}")
            made = Node("input", None, str(node.target), (), {})
        elif node.op == "output":
            if not isinstance(node.args[0], torch.fx.Node):
                raise UnsupportedError(f"the model returns {node.args[0]}, not one tensor; {_ADVICE}")
            output = numbers[node.args[0]]
            continue
        else:
            made = _node(node, modules, numbers, tensors)
            if made.kind == "module":
                parameters.update(dict.fromkeys(_parameters(made.name, modules[made.name])))
        if made.kind in ("input", "module", "function"):
            tensors.add(len(nodes))
        numbers[node] = len(nodes)
        nodes.append(made)
    if output is None or not nodes:
        raise UnsupportedError(f"the model has no input or no output; {_ADVICE}")
    return Program(tuple(nodes), output, tuple(parameters))


def _node(
    node: torch.fx.Node, modules: dict[str, nn.Module], numbers: dict[torch.fx.Node, int], tensors: set[int]
) -> Node:
    """tensors: the nodes so far whose results are tensors, and no sizes."""
    args = _references(node.args, numbers)
    of_tensors = any(numbers[n] in tensors for n in node.all_input_nodes)
    kwargs = {k: v for k, v in _references(node.kwargs, numbers).items() if k != _INPLACE}
    kwargs.update({"x": kwargs.pop("input")} if "input" in kwargs else {})
    name = str(node.target)
    if node.op == "call_module":
        module = modules[name]
        if type(module) not in MODULES:
            raise UnsupportedError(_unknown(f"layer {name!r} ({type(module).__name__})"))
        if type(module) is not original_type(module):
            raise UnsupportedError(f"layer {name!r} is parametrized; {_ADVICE}")
        reason = _REFUSES.get(MODULES[type(module)], lambda m: "")(module)
        if reason or hooked(module):
            raise UnsupportedError(f"layer {name!r}: {reason or 'its hooks would not run'}; {_ADVICE}")
        return Node("module", type(module), name, args, kwargs)
    if node.op in ("call_function", "call_method"):
        if node.target in ("size", "dim") or (node.target is getattr and args[1:2] == ("shape",)):
            return Node("size", node.target if node.op == "call_method" else "shape", name, args, kwargs)
        if not of_tensors and getattr(node.target, "__module__", "") in ("_operator", "operator", "math"):
            return Node("value", node.target, name, args, kwargs)
        if of_tensors and node.target in FUNCTIONS and not {"out", "alpha", "dtype"} & kwargs.keys():
            return Node("function", node.target, name, args, kwargs)
    raise UnsupportedError(_unknown(f"{node.op.replace('_', ' ')} {getattr(node.target, '__name__', name)!r}"))


def _references(value: Any, numbers: dict[torch.fx.Node, int]) -> Any:
    """Nodes replaced by their numbers, in plain containers."""
    if isinstance(value, torch.fx.Node):
        return Ref(numbers[value])
    if isinstance(value, (tuple, list)):
        return tuple(_references(v, numbers) for v in value)
    if isinstance(value, dict):
        return {k: _references(v, numbers) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*(_references(v, numbers) for v in (value.start, value.stop, value.step)))
    return value


def _parameters(name: str, module: nn.Module) -> Iterator[str]:
    return (f"{name}.{n}" for n, _ in module.named_parameters(recurse=False))


_ADVICE = 'use the scheme "int4", whose layers keep floats between them'


def _unknown(what: str) -> str:
    layers = ", ".join(sorted(t.__name__ for t in MODULES))
    functions = ", ".join(sorted({getattr(f, "__name__", str(f)) for f in FUNCTIONS}))
    return (
        f"integer-only has no step for {what}. It knows the layers {layers}, and the functions {functions}. "
        f"Build the model of those, or {_ADVICE}"
    )
