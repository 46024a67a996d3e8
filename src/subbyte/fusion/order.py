"""The order in which the gradients of one tensor are added up, which a chain must keep to give the same bits.

Autograd adds what the readers of a tensor send back, the last reader's first. A chain reads its input where its first
product stood, but sends its gradient back where its last step stood: after that of a reader in between. Two numbers may
change places in a sum of floats, as long as nothing was added before them; others may not.
"""

from __future__ import annotations

import math
from typing import Any

import torch.fx
from torch import nn

from ..nn import QuantizedLayer
from ..tracing import may_mutate

TOGETHER = "together"
"""The product of a residual block adds the shortcut's gradient to its own: one pass less."""

APART = "apart"
"""Both gradients of a chain are sent back, that of what it adds first."""

_RETURN_THEIR_INPUT = {"contiguous", "to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda"}
_RETURN_THEIR_INPUT |= {"dropout", "alpha_dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d", "flatten"}


class Gradients:
    """Where the nodes of a graph send gradients back, as chains are found in it."""

    def __init__(self, graph: torch.fx.Graph, modules: dict[str, nn.Module]) -> None:
        self._modules = modules
        self._before: dict[Any, float] = {node: float(i) for i, node in enumerate(graph.nodes)}
        self._after = dict(self._before)

    def of_chain(self, first: torch.fx.Node, last: torch.fx.Node, add: torch.fx.Node | None, other: Any) -> str:
        """How a chain from `first` to `last` sends its gradients back, TOGETHER or APART; "" if a sum that they are in
        changes.

        add, other  the chain's addition, and what it adds to the last norm's output
        """
        source, how = first.args[0], APART
        assert isinstance(source, torch.fx.Node)
        after = self._after | self._places(first, last, add)
        for tensor in {source, source if other is None else other}:
            readers = self._readers(tensor)
            then, now = (_last_first(readers, places) for places in (self._before, after))
            if not _same_sum(then, now):
                return ""
            if other is source and now[:2] == [add, first]:
                how = TOGETHER
        return how

    def keep(self, first: torch.fx.Node, last: torch.fx.Node, add: torch.fx.Node | None) -> None:
        """A chain from `first` to `last` is taken."""
        self._after |= self._places(first, last, add)

    def _places(self, first: torch.fx.Node, last: torch.fx.Node, add: torch.fx.Node | None) -> dict[Any, float]:
        """Where the readers in a chain go: just before its last step; what is added is the first of its inputs."""
        place = self._before[last]
        return {first: place - 0.5} | ({} if add is None else {add: place - 0.25})

    def _readers(self, node: torch.fx.Node) -> list[torch.fx.Node | None]:
        """Who reads the tensor, as often as they do; None stands for whoever reads an input of the graph outside of it.

        A node that may return its input as it is has no name of its own: who reads one reads both.
        """
        while self._may_return_its_input(node) and isinstance(node.args[0], torch.fx.Node):
            node = node.args[0]
        found: list[torch.fx.Node | None] = [None] if node.op in ("placeholder", "get_attr") else []
        names, seen = [node], {node}
        while names:
            name = names.pop()
            for user in name.users:
                found += [user] * _times(user, name)
                if user not in seen and self._may_return_its_input(user):
                    seen.add(user)
                    names.append(user)
        return found

    def _may_return_its_input(self, node: torch.fx.Node) -> bool:
        if node.op == "call_module":
            m = self._modules[str(node.target)]
            if isinstance(m, (nn.Identity, nn.Flatten, nn.modules.dropout._DropoutNd)):
                return True
            known = isinstance(m, QuantizedLayer) or m.__module__.startswith("torch.nn")
            return not known or may_mutate(node, self._modules)
        if node.op not in ("call_function", "call_method"):
            return False
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        return name in _RETURN_THEIR_INPUT or may_mutate(node, self._modules)


def _last_first(readers: list, places: dict[Any, float]) -> list:
    return sorted(readers, key=lambda n: places.get(n, math.inf), reverse=True)


def _times(user: torch.fx.Node, node: torch.fx.Node) -> int:
    """How often a node is among another's arguments."""
    found: list[torch.fx.Node] = []
    torch.fx.node.map_arg((user.args, user.kwargs), found.append)
    return found.count(node)


def _same_sum(before: list, after: list) -> bool:
    """Is a sum of floats, from left to right, the same in both orders, whatever the numbers are?"""
    return before[2:] == after[2:] and before[:2] in (after[:2], after[1::-1])
