"""The executor: one torch.autograd.Function between the float input of a model and its float logits.

Inside it nothing but integers is multiplied, added or compared, forward and backward. What floats remain are the
image that becomes codes, the logits for the user's loss, its gradient that becomes codes, and Parameters with their
gradients: float tensors that hold an integer of 24 bits times a power of two, a conversion and no arithmetic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import integer, ops
from ..nn import Conv2d, Linear
from ..nn.derived import Derived
from ..numerics import draw_stream
from . import carrier, products
from .carrier import IntTensor
from .program import FUNCTIONS, MODULES, Node, Program, Ref, UnsupportedError, compile_model
from .steps import Call

PROGRAMS = "_subbyte_programs"
"""The attribute of an integer-only model with its programs, {training: Program}."""


class IntegerOnly(Derived):
    """Mixin, first of the bases, of a model that runs as an integer-only network; made by attach."""

    prefix = "IntegerOnly"

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if len(args) + len(kwargs) != 1:
            raise TypeError(f"an integer-only network takes one tensor, not {len(args)} and {sorted(kwargs)}")
        (x,) = args or kwargs.values()
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"an integer-only network takes a float tensor, which it turns into codes; not {x!r:.80}")
        program: Program = vars(self)[PROGRAMS][self.training]
        parameters = [self.get_parameter(name) for name in program.parameters]
        streams = draw_stream(len(program.nodes), x.device) if self.training else None
        if not torch.is_grad_enabled():
            return _Network.apply(self, program, streams, x.detach(), *(p.detach() for p in parameters))
        return _Network.apply(self, program, streams, x, *parameters)


def attach(model: nn.Module) -> None:
    """Make a quantized model an integer-only network, in place: its class changes, and layers get a Memory each.

    UnsupportedError, and the model as it was, where a node of its graph has no step.
    """
    programs = {training: compile_model(model, training) for training in (True, False)}
    model.__class__ = IntegerOnly.derive(type(model))
    vars(model)[PROGRAMS] = programs
    for name in {node.name for node in programs[True].nodes if node.key in (Conv2d, Linear)}:
        products.remember(model.get_submodule(name))


def detach(model: nn.Module) -> None:
    """Undo attach; nothing happens to another model."""
    if isinstance(model, IntegerOnly):
        vars(model).pop(PROGRAMS)
        model.give_back()


class _Network(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, model: nn.Module, program: Program, streams: Tensor | None, x: Tensor, *parameters: Tensor):
        keep = any(t.requires_grad for t in (x, *parameters))
        run = _Run(model, program, streams, x.requires_grad, keep)
        logits = carrier.to_float(run.forward(carrier.from_float(x)))
        if keep:
            ctx.run, ctx.dtype = run, x.dtype
            ctx.save_for_backward(logits, *run.saved)  # logits, so that a second backward raises whatever the model
            run.saved = ()
        return logits.to(x.dtype) if x.dtype != torch.float64 else logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor):
        ctx.run.saved = ctx.saved_tensors[1:]
        dx, gradients = ctx.run.backward(carrier.from_float(g))
        ctx.run.saved = ()
        wanted = ctx.needs_input_grad[4:]
        found = [gradients.get(name) if want else None for name, want in zip(ctx.run.program.parameters, wanted)]
        return None, None, None, None if dx is None else carrier.to_float(dx).to(ctx.dtype), *found


class _Run:
    """One forward pass, and the tape that its backward walks."""

    def __init__(self, model: nn.Module, program: Program, streams: Tensor | None, input_wanted: bool, keep: bool):
        self.model, self.program, self.streams, self.keep = model, program, streams, keep
        self.input_wanted = input_wanted
        self.tape: list[tuple[int, list[int], Callable]] = []
        self.wanted: list[bool] = []
        self.calls = Counter(node.name for node in program.nodes if node.kind == "module")
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}
        self.gradients: dict[str, Tensor] = {}
        self.saved: tuple[Tensor, ...] = ()

    def save(self, t: Tensor) -> Callable[[], Tensor]:
        """How backward gets t back: from ctx.saved_tensors, which it puts here."""
        i, self.saved = len(self.saved), (*self.saved, t)
        return lambda: self.saved[i]

    def forward(self, x: IntTensor) -> IntTensor:
        values: list[Any] = [x]
        self.wanted = [self.input_wanted]
        last_use = _last_uses(self.program)
        for i, node in enumerate(self.program.nodes[1:], start=1):
            value, wanted = self._step(i, node, values)
            values.append(value)
            self.wanted.append(wanted)
            for j in last_use.get(i, ()):
                values[j] = None  # its memory is free for the next step
        return values[self.program.output]

    def _step(self, i: int, node: Node, values: list[Any]) -> tuple[Any, bool]:
        args, kwargs = _filled(node.args, values), _filled(node.kwargs, values)
        if node.kind == "size":
            return _size(node.key, *args, **kwargs), False
        tensors = [r.node for r in _refs((node.args, node.kwargs)) if isinstance(values[r.node], IntTensor)]
        if node.kind == "value":
            return node.key(*args, **kwargs), False
        module = self.model.get_submodule(node.name) if node.kind == "module" else None
        step = MODULES[node.key] if module is not None else FUNCTIONS[node.key]
        trained = module is not None and any(p.requires_grad for p in module.parameters(recurse=False))
        wanted = self.keep and (trained or any(self.wanted[t] for t in tensors))
        call = Call(
            module,
            tuple(self.wanted[t] for t in tensors),
            lambda: self._stream(i),
            lambda name, sums, e: self._add_gradient(node.name, name, sums, e),
            wanted,
            self.save,
        )
        with _recording(module):
            out, backward = step(call, *args, **kwargs)
        if wanted:
            self.tape.append((i, tensors, _recorded(module, backward)))
        return out, wanted

    def _stream(self, i: int) -> Tensor:
        if self.streams is None:  # eval mode draws when a gradient comes, and not before
            self.streams = draw_stream(len(self.program.nodes), next(self.model.parameters()).device)
        return self.streams[i]

    def _add_gradient(self, layer: str, parameter: str, sums: Tensor, exponent: Tensor) -> None:
        name = f"{layer}.{parameter}"
        if self.calls[layer] == 1:  # it is whole: a float of 32 bits takes less memory than sums of 64
            self.gradients[name] = ops.int_to_float(sums, exponent)
            return
        if name in self.sums:
            old, old_e = self.sums[name]
            e = torch.maximum(exponent, old_e)
            sums = integer.shift_by(sums, e - exponent) + integer.shift_by(old, e - old_e)
            exponent = e
        self.sums[name] = sums, exponent

    def backward(self, g: IntTensor) -> tuple[IntTensor | None, dict[str, Tensor]]:
        """(the gradient of the input if it is wanted, those of the Parameters by name)."""
        reaching: dict[int, IntTensor] = {self.program.output: g}
        self.gradients, self.sums = {}, {}
        for i, tensors, step in reversed(self.tape):
            if i not in reaching:
                continue
            for t, part in zip(tensors, step(reaching.pop(i)), strict=True):
                if part is not None and self.wanted[t]:
                    reaching[t] = carrier.add(reaching[t], part) if t in reaching else part
        found = self.gradients | {name: ops.int_to_float(*sums) for name, sums in self.sums.items()}
        self.gradients, self.sums = {}, {}
        return reaching.get(0) if self.input_wanted else None, found


def _recording(module: nn.Module | None):
    record = getattr(module, "record", None)
    return nullcontext() if record is None else ops.recording(record.kernels)


def _recorded(module: nn.Module | None, backward: Callable) -> Callable:
    def run(g: IntTensor):
        with _recording(module):
            return backward(g)

    return run


def _last_uses(program: Program) -> dict[int, list[int]]:
    """Node -> the nodes whose results nobody reads after it."""
    last: dict[int, int] = {}
    for i, node in enumerate(program.nodes):
        for r in _refs((node.args, node.kwargs)):
            last[r.node] = i
    last[program.output] = len(program.nodes)
    uses: dict[int, list[int]] = {}
    for j, i in last.items():
        uses.setdefault(i, []).append(j)
    return uses


def _refs(value: Any) -> list[Ref]:
    if isinstance(value, Ref):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, slice):
        value = (value.start, value.stop, value.step)
    return [r for v in value for r in _refs(v)] if isinstance(value, tuple) else []


def _filled(value: Any, values: list[Any]) -> Any:
    if isinstance(value, Ref):
        return values[value.node]
    if isinstance(value, tuple):
        return tuple(_filled(v, values) for v in value)
    if isinstance(value, dict):
        return {k: _filled(v, values) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*(_filled(v, values) for v in (value.start, value.stop, value.step)))
    return value


def _size(key: str, x: IntTensor, *args: Any) -> Any:
    if key == "dim":
        return len(x.shape)
    return x.shape if key == "shape" or not args else x.shape[args[0]]


__all__ = ["IntegerOnly", "UnsupportedError", "attach", "detach"]
