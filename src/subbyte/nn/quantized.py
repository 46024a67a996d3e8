"""What every subbyte layer has in common: a scheme, a record of what ran, and the two directions of conversion.

A layer IS the torch layer it replaces: a subclass with the same Parameters, buffers and hooks. Conversion changes the
class of the module in place and adds nothing to its state_dict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..autograd import STREAMS, QuantizedProduct
from ..numerics import draw_stream
from ..observe import LayerRecord
from ..products import Products
from ..scheme import LayerScheme

STATE_SUFFIX = "_subbyte"
"""The end of the name of every buffer that a quantizer may keep; float_state_dict strips them."""

TRACED_FROM = "2.13"
"""The first torch whose compiler traces a layer with its scheme; older ones end in an error inside of dynamo."""

REGISTRY: dict[type[nn.Module], type[QuantizedLayer]] = {}
"""Exact type of a float module -> the layer that quantizes it. Filled by the classes below QuantizedLayer."""


def outside_of_graphs(forward: Callable) -> Callable:
    """forward as torch.compile is to see it: with a torch before TRACED_FROM a break in the graph, and run as it is."""
    return forward if torch.__version__ >= TRACED_FROM else torch.compiler.disable(forward)


class QuantizedLayer(nn.Module):
    """Mixin, first of the bases: class Linear(QuantizedLayer, torch.nn.Linear, replaces=torch.nn.Linear).

    scheme   LayerScheme or NormScheme, frozen
    record   which kernels ran last, and statistics of an observed call
    inside   the class of the layer that has this one as a part and alone calls it; None for a layer that stands alone
    """

    replaces: ClassVar[type[nn.Module]]
    inside: ClassVar[type[QuantizedLayer] | None] = None
    scheme: Any
    record: LayerRecord

    def __init_subclass__(cls, replaces: type[nn.Module] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):
            cls.forward = outside_of_graphs(cls.forward)
        if replaces is not None:
            cls.replaces = replaces
            REGISTRY[replaces] = cls

    def __init__(self, *args: Any, scheme: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._attach(scheme)

    @classmethod
    def refuses(cls, module: Any) -> str:
        """ "" if this layer computes what the float module does, otherwise the setting that it does not know."""
        return ""

    def _attach(self, scheme: Any) -> None:
        if reason := self.refuses(self):
            raise ValueError(f"{type(self).__name__}: {reason}")
        self.scheme, self.record = scheme, LayerRecord()

    def release(self) -> type[nn.Module] | None:
        """Give up being quantized; returns the class to become, or None to stay this one, in floats."""
        del self.scheme, self.record
        return self.replaces

    def to_float_state(self, state: dict[str, Tensor], prefix: str) -> None:
        """Change, in place, the entries of this layer (under prefix) in a state_dict to those of the float layer."""

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.scheme}"

    def draw_streams(self, stochastic: bool, x: Tensor, samples: int = 1) -> Tensor | None:
        """The 64-bit streams of this call; None in eval mode, or where nothing rounds stochastically.

        In training they are drawn whether or not gradients are enabled: a checkpointed segment runs twice, without
        gradients first, and both runs must consume torch's generator alike. For the same reason eval mode never draws:
        where a gradient is wanted of it all the same (a frozen BatchNorm), autograd draws when that gradient comes.
        """
        return draw_stream(STREAMS + samples - 1, x.device) if stochastic and self.training else None


class ProductLayer(QuantizedLayer):
    """A layer with a weight: its scheme is a LayerScheme.

    A quantizer that remembers (LearnedStep) works on a buffer of the layer, named by its role and STATE_SUFFIX. It is
    part of the state_dict, but a checkpoint without it loads strictly, and dequantize_ drops it.
    """

    scheme: LayerScheme
    stateful_roles: ClassVar[tuple[str, ...]] = ("weight", "activation")

    def _attach(self, scheme: Any) -> None:
        super()._attach(scheme)
        for role in self.stateful_roles:
            q = getattr(scheme, role)
            state = None if q is None else q.initial_state()
            if state is not None:
                device = next((p.device for p in self.parameters(recurse=False)), None)
                self.register_buffer(role + STATE_SUFFIX, state.to(device))

    def release(self) -> type[nn.Module] | None:
        for name in [n for n in self._buffers if n.endswith(STATE_SUFFIX)]:
            delattr(self, name)
        return super().release()

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *args)
        own = {f"{prefix}{n}" for n in self._buffers if n.endswith(STATE_SUFFIX)}
        missing_keys[:] = [k for k in missing_keys if k not in own]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for name, state in self._buffers.items():  # model.bfloat16() would round away what one update changes
            if name.endswith(STATE_SUFFIX) and state is not None and state.is_floating_point():
                self._buffers[name] = state.float()
        return self

    def _bound(self, scheme: LayerScheme) -> LayerScheme:
        """The scheme with each quantizer that remembers at work on its buffer."""
        for role in self.stateful_roles:
            state = self._buffers.get(role + STATE_SUFFIX)
            if state is not None:
                scheme = replace(scheme, **{role: getattr(scheme, role).bind(state, self.training)})
        return scheme

    def products_of_input(self) -> Products | None:
        """The three products of a layer that multiplies its input as it comes; None where it changes it before."""
        return None

    def multiply(self, x: Tensor, products: Products, weight: Any = None) -> Tensor:
        """output(x, weight) + bias in the dtype that autocast would give.

        weight: another view of self.weight, where its output channels do not come first; None: as it is.
        """
        return self.run_product(x, self.weight if weight is None else weight, self.bias, products, self.scheme)

    def run_product(self, x: Tensor, w: Any, b: Any, products: Products, scheme: LayerScheme) -> Tensor:
        """output(x, w) + b through autograd.QuantizedProduct; w: what has scheme.weight for a quantizer."""
        if not x.is_floating_point():
            raise TypeError(f"{type(self).__name__} quantizes floating-point inputs itself; this one is {x.dtype}")
        streams = self.draw_streams(scheme.stochastic, x, scheme.gradient_samples)
        kind = x.device.type
        cast = torch.is_autocast_enabled(kind) and x.dtype != torch.float64  # autocast leaves float64 alone
        dtype = torch.get_autocast_dtype(kind) if cast else x.dtype
        scheme = scheme if self.training else scheme.deterministic_forward()
        scheme = self._bound(scheme) if not products.part else scheme
        x, w, b = unless_no_grad(x, w, b)
        return QuantizedProduct.apply(x, w, b, products, scheme, streams, self.record, dtype)


def signed_activation(scheme: LayerScheme) -> LayerScheme:
    """The same for an input inside a layer: quantize_ makes activations unsigned by what the layer's own input is."""
    activation = scheme.activation and replace(scheme.activation, signed=True)
    return replace(scheme, activation=activation)


def unless_no_grad(*tensors: Any) -> tuple[Any, ...]:
    """The tensors; detached under no_grad, where an autograd.Function would still be told that they need gradients."""
    if torch.is_grad_enabled():
        return tensors
    return tuple(t.detach() if isinstance(t, Tensor) else t for t in tensors)


def quantized_class(module: nn.Module) -> type[QuantizedLayer] | None:
    """The layer that replaces this module, by the exact type it had before parametrizations, or None."""
    kind = original_type(module)
    return kind if issubclass(kind, QuantizedLayer) else REGISTRY.get(kind)


def original_type(module: nn.Module) -> type[nn.Module]:
    """The type of a module without the class that torch's parametrizations put on top of it."""
    return torch.nn.utils.parametrize.type_before_parametrizations(module)


def become_float(layer: QuantizedLayer) -> None:
    """Make a layer, in place, the torch layer that it replaced, as if it had never been trained with statistics of its
    own: its class's own release may keep it what it is.
    """
    (ProductLayer if isinstance(layer, ProductLayer) else QuantizedLayer).release(layer)
    change_class(layer, layer.replaces)


def change_class(module: nn.Module, cls: type[nn.Module]) -> None:
    """Make the module an instance of cls in place; parametrized attributes stay parametrized."""
    current = type(module)
    if torch.nn.utils.parametrize.is_parametrized(module):
        # torch gave the module a class of its own that holds the parametrized attributes: give cls the same.
        namespace = {
            k: v for k, v in vars(current).items() if k not in ("__dict__", "__weakref__", "__doc__", "__module__")
        }
        cls = type(f"Parametrized{cls.__name__}", (cls,), namespace)
    module.__class__ = cls
