"""Low-rank adapters over a frozen base of packed codes: y = x W + b + (alpha / rank) B(A(x)).

W is quantized once, kept as packed codes (4 bits: half a byte for each weight) and never trained; A (rank, I) and
B (O, rank) are integer layers that train as any other. What the state_dict of such a layer holds:

    base_codes   uint8, ceil(O I bits / 8): the codes of W, packed as ops.pack does
    base_scale   float32, broadcastable to (O, I)
    base_shift   uint8, only with a quantizer that has a shift; base_places  uint8, only with one that has exponents
                 inside of its codes (QTensor.inside)
    bias         as before, frozen
    lora_A.weight, lora_B.weight

Source: Hu et al., "LoRA", arXiv 2106.09685; a quantized base under it: Dettmers et al., "QLoRA", arXiv 2305.14314.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..products import MatmulProducts
from ..qtensor import PackedQTensor, QTensor
from .linear import Linear
from .quantized import STATE_SUFFIX, change_class, original_type, signed_activation

_PRODUCTS = MatmulProducts()
_BASE = ("base_codes", "base_scale", "base_shift", "base_places")


class LoRALinear(Linear):
    """A Linear whose weight is packed and frozen, with adapters A and B. x (..., I) -> (..., O)

    rank     of the update
    alpha    the update counts alpha / rank times; None: rank
    dropout  of the adapters' input
    scheme   LayerScheme of the base and of both adapters; its weight's quantizer packs the base

    Made from a float weight, or by add_lora_ from a model's layers. `weight` is the base, dequantized, read-only.

    >>> import subbyte as sb
    >>> layer = sb.nn.LoRALinear(16, 8, scheme=sb.Scheme.from_name("int4").layer, rank=2)
    >>> [(n, tuple(t.shape)) for n, t in layer.state_dict().items()]  # doctest: +NORMALIZE_WHITESPACE
    [('bias', (8,)), ('base_codes', (64,)), ('base_scale', (1, 1)), ('base_places', (4,)),
     ('lora_A.weight', (2, 16)), ('lora_B.weight', (8, 2))]
    """

    lora_A: Linear
    lora_B: Linear
    base_codes: Tensor
    base_scale: Tensor
    base_shift: Tensor | None
    base_places: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        scheme: Any,
        rank: int,
        alpha: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        plain = Linear(in_features, out_features, bias, device, dtype, scheme=scheme)
        self.__dict__ = plain.__dict__
        self._pack(plain.weight, rank, alpha, dropout)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"LoRALinear expects inputs (..., {self.in_features}), not {tuple(x.shape)}")
        rows = x.reshape(-1, self.in_features)
        base = self.run_product(rows, self._base(), self.bias, _PRODUCTS, self.scheme)
        update = self.lora_B(self.lora_A(self.lora_dropout(rows)))
        return (base + update * self.scaling).reshape(*x.shape[:-1], self.out_features)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The frozen base, dequantized (O, I), float32."""
        return ops.unpack(self._base()).dequantize()

    def merged_weight(self) -> Tensor:
        """base + scaling B A, float32."""
        return self.weight + self.scaling * (self.lora_B.weight @ self.lora_A.weight).float()

    def merge(self) -> nn.Module:
        """Become a Linear of this package again, in place, with the merged weight as its Parameter."""
        weight, dtype = self.merged_weight().detach(), self.lora_A.weight.dtype
        for name in _BASE:
            self._buffers.pop(name, None)
            self._non_persistent_buffers_set.discard(name)
        for name in ("lora_A", "lora_B", "lora_dropout"):
            del self._modules[name]
        del self.scaling, self.rank, self.base_form
        change_class(self, Linear)
        bias = self._parameters.pop("bias")
        self.register_parameter("weight", nn.Parameter(weight.to(dtype)))
        self.register_parameter("bias", bias)
        if bias is not None:
            bias.requires_grad_(True)
        return self

    def release(self) -> type[nn.Module] | None:
        self.merge()
        return Linear.release(self)

    def to_float_state(self, state: dict[str, Tensor], prefix: str) -> None:
        for name in (*_BASE, "lora_A.weight", "lora_B.weight"):
            state.pop(prefix + name, None)
        state[prefix + "weight"] = self.merged_weight().detach().to(self.lora_A.weight.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, scaling={self.scaling:g}"

    def _base(self) -> PackedQTensor:
        parts: dict[str, Any] = dict(scale=self.base_scale.float(), shift=self.base_shift, places=self.base_places)
        return PackedQTensor(packed=self.base_codes, **parts, **self.base_form)

    def _pack(self, weight: Tensor, rank: int, alpha: float | None, dropout: float) -> None:
        """Trade the Parameter `weight` for its codes and add the adapters; everything but these is frozen."""
        if rank < 1:
            raise ValueError(f"an adapter has a rank of 1 or more, not {rank}")
        quantizer = None if self.scheme.weight is None else self.scheme.weight.nearest()
        state = self._buffers.get("weight" + STATE_SUFFIX)
        if quantizer is not None and state is not None:
            quantizer = quantizer.bind(state, training=False)
        q = None if quantizer is None else quantizer(weight.detach().contiguous())
        if not isinstance(q, QTensor):
            raise ValueError(f"adapters need a base of integer codes; the scheme of this layer is {self.scheme}")
        packed = ops.pack(q)
        self._parameters.pop("weight", None)
        self.register_buffer("base_codes", packed.packed)
        self.register_buffer("base_scale", packed.scale.clone())
        self.register_buffer("base_shift", None if packed.shift is None else packed.shift.clone())
        self.register_buffer("base_places", packed.places)
        form = ("shape", "stride", "format", "max_shift", "inside")
        self.base_form = {name: getattr(packed, name) for name in form}
        if self.bias is not None:
            self.bias.requires_grad_(False)
        like = {"device": weight.device, "dtype": weight.dtype}
        self.lora_A = Linear(self.in_features, rank, False, **like, scheme=self.scheme)
        self.lora_B = Linear(rank, self.out_features, False, **like, scheme=signed_activation(self.scheme))
        self.lora_dropout = nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        self.rank, self.scaling = rank, (rank if alpha is None else alpha) / rank
        for module in (self.lora_A, self.lora_B, self.lora_dropout):
            module.train(self.training)


def add_lora_(
    model: nn.Module,
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
) -> nn.Module:
    """Freeze a quantized model and give its Linear layers adapters, in place; returns the model.

    filter_fn  (module, name) -> adapt it? Every Linear if None.

    Everything that is not an adapter stops training (requires_grad False; thaw what should go on). Give the optimizer
    the parameters that still require a gradient. merge_lora_ and dequantize_ undo it, with the update in the weights.

    Raises ValueError where there is nothing to adapt, and for a Linear whose weight is tied to another layer or
    parametrized; TypeError for a model that is not quantized.
    """
    layers = {n: m for n, m in model.named_modules() if original_type(m) is Linear}
    if not layers:
        raise TypeError("add_lora_: the model has no quantized Linear; call quantize_(model, scheme) first")
    layers = {n: m for n, m in layers.items() if filter_fn is None or filter_fn(m, n)}
    if not layers:
        raise ValueError("add_lora_: filter_fn leaves no layer to adapt")
    owners: dict[int, int] = {}
    for m in model.modules():
        for p in m.parameters(recurse=False):
            owners[id(p)] = owners.get(id(p), 0) + 1
    for name, m in layers.items():
        if torch.nn.utils.parametrize.is_parametrized(m):
            raise ValueError(f"add_lora_: {name!r} is parametrized; its weight cannot be packed (use filter_fn)")
        if owners[id(m.weight)] > 1:
            raise ValueError(f"add_lora_: the weight of {name!r} is tied to another layer (use filter_fn)")
    for p in model.parameters():
        p.requires_grad_(False)
    for m in layers.values():
        weight: Any = m.weight
        m.__class__ = LoRALinear
        m._pack(weight, rank, alpha, dropout)
    return model


def merge_lora_(model: nn.Module) -> nn.Module:
    """Make every LoRALinear a Linear of this package again, its update merged into a Parameter `weight`; in place.

    What add_lora_ froze elsewhere stays frozen. TypeError if there is none.
    """
    layers = [m for m in model.modules() if isinstance(m, LoRALinear)]
    if not layers:
        raise TypeError("merge_lora_: the model has no LoRALinear")
    for m in layers:
        m.merge()
    return model
