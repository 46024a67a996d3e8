"""Which layers have an input that cannot be negative, by the structure of the model and never by its data.

The producer decides: behind a ReLU (or a sigmoid, or a pool or reshape of such) a code may be unsigned, which doubles
the levels. The graph is torch.fx's; a model that cannot be traced keeps signed activations, and report() says why.
"""

from __future__ import annotations

import operator

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

_NONNEGATIVE_MODULES = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Softmax, nn.Hardsigmoid)
_KEEPING_MODULES = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
    *(nn.AdaptiveMaxPool2d, nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d),
)
_NONNEGATIVE_CALLS = {"relu", "relu_", "relu6", "sigmoid", "softmax", "abs", "square", "hardsigmoid"}
_KEEPING_CALLS = {
    *(
        "flatten",
        "view",
        "reshape",
        "permute",
        "transpose",
        "contiguous",
        "squeeze",
        "unsqueeze",
        "mean",
        "to",
        "clone",
    ),
    *(
        "max_pool2d",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "dropout",
        "amax",
        "chunk",
        "getitem",
        "pad",
    ),
}
_COMBINING_CALLS = {"add", "add_", "iadd", "mul", "imul", "mul_", "cat", "maximum"}
"""Not negative if every tensor that goes in is not."""


class _Tracer(torch.fx.Tracer):
    """Looks through containers, stops at every layer of torch.nn and at anything with hooks of its own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, (nn.Sequential, nn.ModuleList)) and m.__module__.startswith("torch.nn")


def nonnegative_inputs(model: nn.Module) -> tuple[set[str], str]:
    """(names of modules whose every call has a first argument >= 0, "" or the reason why the model was not traced)."""
    if not list(model.children()):
        return set(), "a single module: its producer is not known"
    try:
        graph = _Tracer().trace(model)
    except Exception as e:  # fx raises whatever the model's own code does with a Proxy
        return (
            set(),
            f"torch.fx cannot trace the model ({type(e).__name__}: {str(e).splitlines()[0][:120] if str(e) else ''})",
        )
    modules = dict(model.named_modules())
    nonnegative: dict[torch.fx.Node, bool] = {}
    inputs: dict[str, bool] = {}
    for node in graph.nodes:
        if node.op == "call_module" and node.args:
            first = node.args[0]
            known = isinstance(first, torch.fx.Node) and nonnegative.get(first, False)
            inputs[node.target] = inputs.get(node.target, True) and known
        nonnegative[node] = _is_nonnegative(node, modules, nonnegative)
    return {name for name, good in inputs.items() if good}, ""


def _is_nonnegative(node: torch.fx.Node, modules: dict[str, nn.Module], known: dict[torch.fx.Node, bool]) -> bool:
    tensors = [known.get(n, False) for n in node.all_input_nodes]
    if node.op == "call_module":
        module = modules[str(node.target)]
        if module._forward_hooks or module._forward_pre_hooks:  # a hook may change the sign
            return False
        if isinstance(module, _NONNEGATIVE_MODULES):
            return True
        return isinstance(module, _KEEPING_MODULES) and all(tensors)
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.target in (F.dropout, F.max_pool2d, operator.getitem) or name in _KEEPING_CALLS:
        return bool(tensors) and tensors[0]
    if name in _COMBINING_CALLS:
        positive = all(a >= 0 for a in node.args if isinstance(a, (int, float)))
        return bool(tensors) and all(tensors) and positive
    return name in _NONNEGATIVE_CALLS
