"""MultiheadAttention: its projections as integer products; the attention itself, products of activations, in floats.

    q, k, v = x W_q^T + b_q, ...    integer products: one of all three where query, key and value are one tensor
    h = softmax(q k^T / sqrt(D)) v  float, torch's scaled_dot_product_attention; report counts it as float
    y = h W_o^T + b_o               integer products: out_proj, a layer of its own

Shapes: B batch, T and S lengths of query and key, E embedding, H heads, D = E / H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..products import MatmulProducts
from ..scheme import LayerScheme
from .linear import Linear
from .quantized import ProductLayer, change_class, signed_activation


@dataclass(frozen=True)
class _KeyProducts(MatmulProducts):
    part: ClassVar[str] = "key_"


@dataclass(frozen=True)
class _ValueProducts(MatmulProducts):
    part: ClassVar[str] = "value_"


_QUERY, _KEY, _VALUE = MatmulProducts(), _KeyProducts(), _ValueProducts()


class MultiheadAttention(ProductLayer, nn.MultiheadAttention, replaces=nn.MultiheadAttention):
    """torch.nn.MultiheadAttention whose projections are integer products. Masks, layouts and results as torch's.

    query (T, B, E), key (S, B, kdim), value (S, B, vdim), batch first where the layer says so, or without a batch
    -> (output as query, weights (B, T, S) or None). For self-attention (one tensor for all three) the record names one
    product; otherwise those of key and value come as key_output, value_output... bias_k, bias_v and add_zero_attn are
    refused: quantize_ leaves such a layer float. In eval mode torch's float fast path is never taken.

    >>> import torch, subbyte as sb
    >>> layer = sb.nn.MultiheadAttention(8, 2, batch_first=True, scheme=sb.Scheme.from_name("int8").layer)
    >>> x = torch.randn(3, 5, 8)
    >>> y, weights = layer(x, x, x)
    >>> y.shape, weights.shape
    (torch.Size([3, 5, 8]), torch.Size([3, 5, 5]))
    """

    def __init__(self, *args: Any, scheme: LayerScheme, **kwargs: Any) -> None:
        super().__init__(*args, scheme=scheme, **kwargs)
        change_class(self.out_proj, OutProjection)
        cast(OutProjection, self.out_proj)._attach(signed_activation(scheme))

    @classmethod
    def refuses(cls, module: Any) -> str:
        if module.bias_k is not None or module.bias_v is not None:
            return "add_bias_kv=True: keys and values that no integer product makes"
        return "add_zero_attn=True: a key and a value of zeros" if module.add_zero_attn else ""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        self._check(query, key, value)
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask: MultiheadAttention needs the mask as well")
        lengths_first = query.ndim == 2 or not self.batch_first
        q, k, v = (self._heads(t, lengths_first) for t in self._project(query, key, value))
        mask = self._mask(attn_mask, key_padding_mask, q, k)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            weights = q * self.head_dim**-0.5 @ k.transpose(-2, -1)
            weights = F.dropout((weights if mask is None else weights + mask).softmax(-1), dropout)
            h = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights.squeeze(0) if query.ndim == 2 else weights
        else:
            causal = is_causal and key_padding_mask is None
            h = F.scaled_dot_product_attention(q, k, v, None if causal else mask, dropout, causal)
        h = h.permute(2, 0, 1, 3) if lengths_first else h.transpose(1, 2)  # (T, B, H, D) or (B, T, H, D)
        return self.out_proj(h.reshape(*query.shape[:-1], self.embed_dim)), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """(q, k, v), each (..., E)."""
        weight, bias, e = self.in_proj_weight, self.in_proj_bias, self.embed_dim
        if query is key is value and self._qkv_same_embed_dim:
            return self._product(query, weight, bias, _QUERY).split(e, -1)
        if self._qkv_same_embed_dim:
            weights = weight.split(e)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if bias is None else bias.split(e)
        inputs, products = (query, key, value), (_QUERY, _KEY, _VALUE)
        return tuple(self._product(*each) for each in zip(inputs, weights, biases, products, strict=True))

    def _product(self, x: Tensor, w: Tensor, b: Tensor | None, products: MatmulProducts) -> Tensor:
        """x w^T + b. What is known of the sign of the layer's input is about the query."""
        scheme = self.scheme if not products.part else signed_activation(self.scheme)
        return self.run_product(x.reshape(-1, x.shape[-1]), w, b, products, scheme).reshape(*x.shape[:-1], w.shape[0])

    def _heads(self, t: Tensor, lengths_first: bool) -> Tensor:
        """(T, B, E), (B, T, E) or (T, E) -> (B, H, T, D)."""
        t = t.unflatten(-1, (self.num_heads, self.head_dim))
        if t.ndim == 3:
            t = t.unsqueeze(1)
        return t.permute(1, 2, 0, 3) if lengths_first else t.transpose(1, 2)

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
        """What is added to the scores (B, H, T, S): both masks, -inf where a boolean one is True."""
        (batch, heads, t), s = q.shape[:3], k.shape[2]
        total = None
        for mask, allowed in (
            (attn_mask, {(t, s): (1, 1, t, s), (batch * heads, t, s): (batch, heads, t, s)}),
            (padding, {(batch, s): (batch, 1, 1, s), (s,): (1, 1, 1, s)}),
        ):
            if mask is None:
                continue
            if tuple(mask.shape) not in allowed:
                raise ValueError(f"a mask here has shape {' or '.join(map(str, allowed))}, not {tuple(mask.shape)}")
            added = mask.view(allowed[tuple(mask.shape)])
            if added.dtype == torch.bool:
                added = torch.zeros_like(added, dtype=q.dtype).masked_fill_(added, float("-inf"))
            total = added.to(q.dtype) if total is None else total + added.to(q.dtype)
        return total

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        wanted = (self.embed_dim, self.kdim, self.vdim)
        shapes = tuple(tuple(t.shape) for t in (query, key, value))
        if any(t.is_nested for t in (query, key, value)):
            raise TypeError("MultiheadAttention takes no nested tensors")
        batch = 0 if self.batch_first else 1
        same = len({len(shape) for shape in shapes}) == 1 and shapes[1][:-1] == shapes[2][:-1]
        if (
            not same
            or query.ndim not in (2, 3)
            or tuple(shape[-1] for shape in shapes) != wanted
            or (query.ndim == 3 and shapes[0][batch] != shapes[1][batch])
        ):
            order = "(B, T, {}), (B, S, {}), (B, S, {})" if self.batch_first else "(T, B, {}), (S, B, {}), (S, B, {})"
            raise ValueError(f"MultiheadAttention expects {order.format(*wanted)}, not {shapes}")


class OutProjection(Linear, NonDynamicallyQuantizableLinear, replaces=NonDynamicallyQuantizableLinear):
    """The out_proj of a MultiheadAttention: a Linear. Its float layer reads the weight itself, and never calls it."""

    inside = MultiheadAttention
