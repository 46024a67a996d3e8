"""fuse_ and unfuse_: a model whose forward calls each chain of its layers as one step, in place.

torch.fx reads the model's graph; the model keeps its modules, Parameters, hooks and state_dict keys, and gets a class
whose forward is generated. What is in no chain runs as it did, and the Fusion on the model says why. A chain that a
call does not suit (eval mode, float16, an observed layer) runs layer by layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..integer_only import IntegerOnly
from ..nn import QuantizedLayer
from ..nn.derived import Derived
from ..nn.quantized import outside_of_graphs
from .graph import compiled, traced
from .run import Plan, has_hooks

FUSION = "subbyte_fusion"
"""The attribute of a fused model that holds its Fusion."""


@dataclass
class Fusion:
    """What fuse_ did, kept on the model under FUSION.

    chains  the chains, in the order of the graph
    left    name -> why it is in no chain, for every quantized layer that is in none
    """

    chains: tuple[Plan, ...] = ()
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.chains)} chains", *(f"  {plan}" for plan in self.chains)]
        if self.left:
            lines += [f"{len(self.left)} layers not fused", *(f"  {name}: {why}" for name, why in self.left.items())]
        return "\n".join(lines)


class NothingToFuse(ValueError):
    """fuse_ found no chain; the message says why for every layer."""


def fuse_(model: nn.Module, example_input: Any = None) -> nn.Module:
    """Run the chains product - batch norm - (add) - ReLU of a quantized model as one step each, in place; returns it.

    example_input  a tensor or a tuple of arguments: the fused and the unfused model are compared on it, bit for bit, in
                   train mode and without changing anything (RuntimeError if they differ, with the model as it was)

    Outputs, gradients, running statistics and the random numbers drawn are those of the unfused model, bit for bit;
    what changes is memory traffic, and what is saved for backward. Modules and state_dict stay what they are. A model
    that torch.fx cannot trace is fused part by part. `model.subbyte_fusion` lists chains and what was left, with why;
    unfuse_ takes it back. quantize_ goes first.

    Raises TypeError if no layer is quantized, the model is fused already or an integer-only network (which is one step
    as a whole), NothingToFuse (a ValueError) where no chain is found.
    """
    if not any(isinstance(m, QuantizedLayer) for m in model.modules()):
        raise TypeError("fuse_: the model has no quantized layer; quantize_ it first")
    if any(isinstance(m, FusedForward) for m in model.modules()):
        raise TypeError("fuse_: the model is fused already; unfuse_ it first")
    if any(isinstance(m, IntegerOnly) for m in model.modules()):
        raise TypeError("fuse_: an integer-only network is one step as a whole already; there are no chains to fuse")
    chains: list[Plan] = []
    left: dict[str, str] = {}
    for prefix, part in _parts(model, ""):
        found, why = _change(part)
        chains += [Plan(tuple(prefix + n for n in p.layers), p.add, p.relu) for p in found]
        left.update({prefix + n: reason for n, reason in why.items()})
    fused = {n for p in chains for n in p.layers}
    for name, m in model.named_modules():
        if isinstance(m, QuantizedLayer) and name not in fused:
            left.setdefault(name, "in a part of the model that torch.fx cannot trace")
    if not chains:
        unfuse_(model)
        raise NothingToFuse(f"nothing to fuse:\n{Fusion((), left)}")
    if example_input is not None:
        _compare(model, example_input if isinstance(example_input, tuple) else (example_input,))
    setattr(model, FUSION, Fusion(tuple(chains), left))
    return model


def unfuse_(model: nn.Module) -> nn.Module:
    """Undo fuse_, in place: every layer by itself again. Returns the model; one that is not fused stays as it is."""
    for m in model.modules():
        if isinstance(m, FusedForward):
            m.give_back()
        vars(m).pop(FUSION, None)
    return model


# ------------------------------------------------------------------------------------------- the changed forward


class FusedForward(Derived):
    """First base of a fused model's class: forward by the graph in which each chain is one call.

    A graph holds for one set of training flags and hooks, so there is one for each that occurs.
    """

    prefix = "Fused"
    arguments: int
    forwards: dict[tuple, Callable | None]

    @classmethod
    def derive(cls, original: type[nn.Module], **namespace: Any) -> type[Any]:
        required = [
            p for p in list(inspect.signature(original.forward).parameters.values())[1:] if p.default is p.empty
        ]
        return super().derive(original, arguments=len(required), forwards={}, **namespace)

    @outside_of_graphs
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != self.arguments:  # a graph is that of a call with the required arguments alone
            return super().forward(*args, **kwargs)
        state = _state(self)
        if state not in self.forwards:
            graph = traced(self, self.original)
            self.forwards[state] = None if graph is None else compiled(graph, self)[0]
        run = self.forwards[state]
        return super().forward(*args) if run is None else run(self, *args)


def _state(module: nn.Module) -> tuple:
    """What a graph depends on: training flag and hooks of every module."""
    return tuple((m.training, has_hooks(m)) for m in module.modules())


def _parts(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules whose graph can be had, with the prefix of their names."""
    if isinstance(module, QuantizedLayer):
        return
    graph = traced(module, type(module))
    if graph is not None:
        yield prefix, module
        inside = {str(n.target) for n in graph.nodes if n.op == "call_module"}
        children = [(n, module.get_submodule(n)) for n in sorted(inside)]
    else:
        children = list(module.named_children())
    for name, child in children:
        if any(True for _ in child.children()):
            yield from _parts(child, f"{prefix}{name}.")


def _change(module: nn.Module) -> tuple[list[Plan], dict[str, str]]:
    """Give a module the class whose forward is fused -> (chains, layers left and why)."""
    cls = type(module)
    graph = traced(module, cls)
    assert graph is not None
    run, plans, left = compiled(graph, module)
    if plans:
        fused = FusedForward.derive(cls)
        fused.forwards[_state(module)] = run
        module.__class__ = fused
    return plans, left


def _compare(model: nn.Module, args: tuple) -> None:
    """RuntimeError, and an unfused model, if fused and unfused outputs differ on args in train mode."""
    training = {m: m.training for m in model.modules()}
    buffers = {m: {k: b if b is None else b.clone() for k, b in m._buffers.items()} for m in model.modules()}
    outputs = []

    def run() -> Any:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            y = model(*args)
        for m, kept in buffers.items():
            for k, b in kept.items():
                if b is not None:
                    m._buffers[k].copy_(b)  # type: ignore[union-attr]
        return y

    try:
        model.train()
        outputs.append(run())
        parts = {part: type(part) for part in model.modules() if isinstance(part, FusedForward)}
        for part in parts:
            part.give_back()
        outputs.append(run())
        for part, cls in parts.items():
            part.__class__ = cls
    finally:
        for m, flag in training.items():
            m.training = flag
    same = torch.utils._pytree.tree_map(_equal, *outputs)
    if not all(torch.utils._pytree.tree_leaves(same)):
        unfuse_(model)
        raise RuntimeError("the fused model differs from the unfused one on example_input; it was left unfused")


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num()) if isinstance(a, Tensor) else a == b
