"""The chains of a torch.fx graph: found, and put in place of their nodes.

Only what is certain to compute the same: layers called once, without hooks, whose output nothing else reads.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from ..chain import covers
from ..nn import ProductLayer, QuantizedLayer
from ..nn.batch_norm import BatchNorm
from ..nn.quantized import original_type
from ..tracing import may_mutate, trace
from .order import APART, TOGETHER, Gradients
from .run import Plan, finish, has_hooks, start

_ADDS: set[Any] = {operator.add, operator.iadd, torch.add, "add", "add_"}
_IN_PLACE_ADDS: set[Any] = {operator.iadd, "add_"}
_RELUS: set[Any] = {torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_"}


def traced(module: nn.Module, cls: type[nn.Module]) -> torch.fx.Graph | None:
    """The graph of cls.forward for a call with the required arguments; None where torch.fx cannot give it."""
    parameters = list(inspect.signature(cls.forward).parameters.values())[1:]
    if any(p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters):
        return None
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    current, module.__class__ = type(module), cls
    try:
        graph = trace(module, None, defaults or None, stop=has_hooks)
    except Exception:  # fx raises whatever the model's own code does with a Proxy
        return None
    finally:
        module.__class__ = current
    _drop_defaults(graph, set(defaults))
    return graph


def _drop_defaults(graph: torch.fx.Graph, names: set[str]) -> None:
    """Take the arguments that were given as values out of the graph, with fx's checks of them."""
    for node in reversed(list(graph.nodes)):
        base = str(node.target).rsplit("_", 1)[0]
        if node.op == "placeholder" and ({str(node.target), base} & names):
            for user in reversed(list(node.users)):
                for check in reversed(list(user.users)):
                    graph.erase_node(check)
                graph.erase_node(user)
            graph.erase_node(node)
    graph.set_codegen(torch.fx.graph.CodeGen())


def compiled(graph: torch.fx.Graph, module: nn.Module) -> tuple[Callable | None, list[Plan], dict[str, str]]:
    """(forward of the graph with its chains as one call each, or None without any; chains; layers left and why)."""
    modules = dict(module.named_modules())
    _drop_identities(graph, modules)
    chains, left = _find(graph, modules)
    for chain in chains:
        _rewrite(graph, chain)
    _share(graph)
    if not chains:
        return None, [], left
    graph.lint()
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(code.src, namespace)  # the text is torch.fx's, of the graph above
    return namespace["forward"], [c.plan for c in chains], left


def _drop_identities(graph: torch.fx.Graph, modules: dict[str, nn.Module]) -> None:
    """So that what stands before one meets what stands behind it."""
    for node in list(graph.nodes):
        m = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(m) is nn.Identity and not has_hooks(m) and len(node.args) == 1:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


@dataclass
class _Found:
    """A chain in a graph: its plan, its nodes in order, the one of them that adds something, how gradients go back."""

    plan: Plan
    nodes: list[torch.fx.Node]
    add: torch.fx.Node | None
    gradients: str = APART

    @property
    def source(self) -> Any:
        return self.nodes[0].args[0]

    @property
    def other(self) -> Any:
        return None if self.add is None else _other(self.add, self.nodes[self.nodes.index(self.add) - 1])


def _find(graph: torch.fx.Graph, modules: dict[str, nn.Module]) -> tuple[list[_Found], dict[str, str]]:
    calls: Counter[str] = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    owners = Counter(p for name in calls for p in modules[name].parameters())
    order, gradients = {node: i for i, node in enumerate(graph.nodes)}, Gradients(graph, modules)
    reason = functools.partial(_why_not, modules=modules, calls=calls, owners=owners)
    chains: list[_Found] = []
    used: set[torch.fx.Node] = set()
    for node in graph.nodes:
        if node in used or not _is_layer(node, modules, ProductLayer) or reason(node):
            continue
        chain = _grow(node, modules, reason, order, used, gradients)
        if chain is not None:
            chains.append(chain)
            used.update(chain.nodes)
            gradients.keep(node, chain.nodes[-1], chain.add)
    left = {}
    for node in graph.nodes:
        if node.op == "call_module" and node not in used and isinstance(modules[str(node.target)], QuantizedLayer):
            left[str(node.target)] = reason(node) or _why_alone(node, modules)
    return chains, left


def _why_alone(node: torch.fx.Node, modules: dict[str, nn.Module]) -> str:
    """Why a layer that could be in a chain is in none."""
    norm = _only_user(node)
    if _is_layer(node, modules, ProductLayer) and norm is not None and _is_layer(norm, modules, BatchNorm):
        product, bn = modules[str(node.target)], modules[str(norm.target)]
        return covers(product.scheme, bn.scheme, first=True) or "its norm is left"  # type: ignore[arg-type]
    if _is_layer(node, modules, ProductLayer):
        return "there is no batch norm behind it that alone reads its output"
    return "there is no product before it that it alone reads"


def _is_layer(node: torch.fx.Node, modules: dict[str, nn.Module], kind: type) -> bool:
    return node.op == "call_module" and isinstance(modules[str(node.target)], kind)


def _why_not(
    node: torch.fx.Node, modules: dict[str, nn.Module], calls: Counter[str], owners: Counter[nn.Parameter]
) -> str:
    """ "" if this layer may be in a chain, otherwise why not."""
    m = modules[str(node.target)]
    if calls[str(node.target)] > 1:
        return f"called {calls[str(node.target)]} times"
    most = max((owners[p] for p in m.parameters()), default=0)
    if most > 2:  # the sum of two gradients has no order
        return f"its Parameter is that of {most} layers, whose gradients are added in turn"
    if has_hooks(m):
        return "it has hooks"
    if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], torch.fx.Node):
        return "called with more than its input"
    if isinstance(m, ProductLayer):
        return "" if m.products_of_input() is not None else f"{type(m).__name__} changes its input first"
    if isinstance(m, BatchNorm):
        return ""
    return f"{type(m).__name__} is not a batch norm"


def _only_user(node: torch.fx.Node) -> torch.fx.Node | None:
    """The one node that reads this one, once; None where there are more."""
    users = list(node.users)
    if len(users) != 1 or [*users[0].args, *users[0].kwargs.values()].count(node) != 1:
        return None
    return users[0]


def _grow(node: torch.fx.Node, modules, reason, order, used, gradients: Gradients) -> _Found | None:
    """The longest chain of nodes not yet used that begins with this product, or None."""
    nodes: list[torch.fx.Node] = []
    names: list[str] = []
    ends: list[_Found] = []  # where the chain could end
    current: torch.fx.Node | None = node
    add = None

    def end(relu: bool) -> None:
        ends.append(_Found(Plan(tuple(names), add is not None, relu), list(nodes), add))

    while current is not None and _is_layer(current, modules, ProductLayer) and not reason(current):
        norm = _only_user(current)
        if norm is None or not _is_layer(norm, modules, BatchNorm) or reason(norm):
            break
        product, bn = modules[str(current.target)], modules[str(norm.target)]
        if covers(product.scheme, bn.scheme, first=not nodes):
            break
        if nodes and not _adjacent(nodes, [current, norm], order):
            break
        nodes += [current, norm]
        names += [str(current.target), str(norm.target)]
        end(relu=False)
        after = _only_user(norm)
        if after is not None and after not in used and _adds(after, norm, nodes, order, modules):
            add = after
            nodes.append(after)
            end(relu=False)
            after = _only_user(after)
        if after is None or after in used or not _is_relu(after, modules):
            break
        nodes.append(after)
        end(relu=True)
        if add is not None:
            break
        current = _only_user(after)
    for found in reversed(ends):
        found.gradients = gradients.of_chain(node, found.nodes[-1], found.add, found.other)
        if found.gradients:
            return found
    return None


def _adjacent(nodes: list[torch.fx.Node], more: list[torch.fx.Node], order: dict) -> bool:
    """Does nothing else stand between the chain so far and these nodes? Then random numbers keep their order."""
    return order[more[-1]] - order[nodes[0]] + 1 == len(nodes) + len(more)


def _adds(node: torch.fx.Node, norm: torch.fx.Node, nodes: list, order: dict, modules: dict) -> bool:
    """Does `node` add another tensor to the norm's output, in a way that can move into the chain?"""
    if node.op not in ("call_function", "call_method") or node.target not in _ADDS:
        return False
    if node.kwargs or len(node.args) != 2:
        return False
    a, b = node.args
    if node.target in _IN_PLACE_ADDS and a is not norm:  # changes what it adds to, which others may read
        return False
    if not isinstance(b if a is norm else a, torch.fx.Node):
        return False
    between = [n for n in order if order[nodes[-1]] < order[n] < order[node]]
    return not any(may_mutate(n, modules) for n in between)


def _other(add: torch.fx.Node, norm: torch.fx.Node) -> Any:
    return next(a for a in add.args if a is not norm)


def _is_relu(node: torch.fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        m = modules[str(node.target)]
        return original_type(m) is nn.ReLU and not has_hooks(m)
    inputs = [a for a in node.args if isinstance(a, torch.fx.Node)]
    return node.op in ("call_function", "call_method") and node.target in _RELUS and len(inputs) == 1


def _rewrite(graph: torch.fx.Graph, chain: _Found) -> None:
    """Two calls in place of the chain's nodes: start where its first stood, finish where its last did."""
    first, last = chain.nodes[0], chain.nodes[-1]
    with graph.inserting_before(first):
        modules = [graph.get_attr(name) for name in chain.plan.layers]
        started = graph.call_function(start, (chain.source, None, None, *modules))
    with graph.inserting_before(last):
        both = graph.call_function(
            finish, (started, chain.other, chain.plan.relu, chain.gradients is TOGETHER, *modules)
        )
        z = graph.call_function(operator.getitem, (both, 0))
    last.replace_all_uses_with(z)
    for node in reversed(chain.nodes):
        graph.erase_node(node)


def _share(graph: torch.fx.Graph) -> None:
    """Hand the range of a chain's output to the chains that begin with it, and codes to the second of two such."""
    first: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in list(graph.nodes):
        if node.target is not start:
            continue
        source, r, twin, *modules = node.args
        if source in first:
            twin = first[source]
        elif source.target is operator.getitem and source.args[0].target is finish:
            with graph.inserting_after(source):
                r = graph.call_function(operator.getitem, (source.args[0], 1))
        first.setdefault(source, node)
        node.args = (source, r, twin, *modules)
