"""How an op finds its kernel: the body of an op IS its reference, a backend may replace it, a record says which ran.

`op` registers a function with torch.library under subbyte::NAME for every device, with its fake. Inside the op the
backends are asked in order of priority; a forced backend that does not cover the call raises, it never falls back.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch import _C

from .. import backends

REFERENCE = "reference"
_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))
_NO_TENSOR = frozenset((type(None), bool, int, float, list, tuple, torch.Size))

library = torch.library.Library("subbyte", "DEF")
registered: dict[str, Callable] = {}
"""op name -> its reference, for tests and tables."""

dispatched: dict[str, Callable] = {}
"""op name -> what callers use: the function that `op` returned."""

last_kernel: dict[str, str] = {}
"""op name -> the kernel that ran it last, in any thread. Tests assert on it."""

_forced: str | None = os.environ.get("SUBBYTE_BACKEND") or None
_layer_record: contextvars.ContextVar[dict[str, str] | None] = contextvars.ContextVar("layer_record", default=None)


class BackendError(NotImplementedError):
    """A forced backend does not exist, cannot run here, or does not cover this call."""


def op(schema: str, fake: Callable) -> Callable[[Callable], Callable]:
    """Register `reference` as subbyte::<its name><schema>; returns the function that every caller uses.

    That calls torch's op, or, where torch would do nothing but pass the arguments on (`_eager`), what the op runs: a
    network's step has hundreds of calls, and torch's way through Python takes longer than a small kernel.

    schema  torch.library's, flat: "(Tensor x, int axis) -> Tensor"
    fake    shapes and dtypes alone, for torch.compile and FakeTensor
    """

    def register(reference: Callable) -> Callable:
        name = reference.__name__

        def run(*args):
            kernel, result = _run(name, reference, args)
            last_kernel[name] = kernel
            record = _layer_record.get()
            if record is not None:
                record[name] = kernel
            return result

        library.define(name + schema)
        library.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"subbyte::{name}", fake, lib=library)
        registered[name] = reference
        overload = getattr(torch.ops.subbyte, name).default

        def call(*args):
            return run(*args) if _eager(args) else overload(*args)

        dispatched[name] = call
        return call

    return register


def _eager(args: tuple) -> bool:
    """Are these plain tensors, and is nothing there that has to see the op: autograd, a tracer, a mode, a profiler?"""
    if torch.compiler.is_compiling():
        return False
    if _C._len_torch_dispatch_stack() or _C._len_torch_function_stack() or _C._is_tracing():
        return False
    if _C._functorch.peek_interpreter_stack() is not None or torch.autograd._profiler_enabled():
        return False
    grad = torch.is_grad_enabled()
    for a in args:  # by type: isinstance takes three times as long, ten thousand times in a step of a network
        if type(a) in _PLAIN:
            if a.is_meta or (grad and a.requires_grad):
                return False
        elif type(a) not in _NO_TENSOR:
            return False
    return True


def _run(name: str, reference: Callable, args: tuple) -> tuple[str, object]:
    if _forced is not None and _forced != REFERENCE:
        module = forced_backend(_forced)
        function = getattr(module, name, None)
        result = NotImplemented if function is None else function(*args)
        if result is NotImplemented:
            raise BackendError(f"backend {_forced!r} was forced but does not cover {name}({_describe(args)})")
        return _kernel_name(module, name), result
    if _forced is None:
        for module in backends.usable():
            function = getattr(module, name, None)
            result = NotImplemented if function is None else function(*args)
            if result is not NotImplemented:
                return _kernel_name(module, name), result
    # Under autocast a float product inside the reference would silently become bf16, and would not be exact.
    device = next((a.device.type for a in args if isinstance(a, torch.Tensor)), "cpu")
    with torch.autocast(device, enabled=False):
        return REFERENCE, reference(*args)


def covered(name: str) -> bool:
    """May this op be called: is no backend forced, or one that has it? Asked of an op that other ops can stand for."""
    return _forced in (None, REFERENCE) or hasattr(forced_backend(str(_forced)), name)


def forced_backend(name: str) -> ModuleType:
    """The backend of that name, or BackendError with what exists and why this one cannot run."""
    found = backends.discover()
    if name not in found:
        raise BackendError(f"no backend {name!r}; there are: {', '.join([*found, REFERENCE])}")
    if reason := found[name].available():
        raise BackendError(f"backend {name!r} cannot run here: {reason}")
    return found[name]


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force every op onto one backend (or "reference") inside the block; None restores the automatic choice.

    Process-wide rather than per thread, because autograd runs backward on threads of its own.
    """
    global _forced
    if name is not None and name != REFERENCE:
        forced_backend(name)
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def recording(record: dict[str, str]) -> contextlib.AbstractContextManager[None]:
    """Also write op -> kernel into `record` for every op called inside the block: how a layer knows what ran.

    Not while torch.compile traces: what the graph runs afterwards is recorded in last_kernel alone.
    """
    return contextlib.nullcontext() if torch.compiler.is_compiling() else _recording(record)


@contextlib.contextmanager
def _recording(record: dict[str, str]) -> Iterator[None]:
    token = _layer_record.set(record)
    try:
        yield
    finally:
        _layer_record.reset(token)


def note(name: str, kernel: str) -> None:
    """Record a product that was not an op, such as an emulation in floats."""
    record = None if torch.compiler.is_compiling() else _layer_record.get()
    if record is not None:
        record[name] = kernel


def _kernel_name(module: ModuleType, name: str) -> str:
    return getattr(module, "ran", {}).get(name, module.NAME)


def _describe(args: tuple) -> str:
    return ", ".join(f"{str(a.dtype)[6:]}{list(a.shape)}" if isinstance(a, torch.Tensor) else repr(a) for a in args)
