"""Embedding and EmbeddingBag: weight codes looked up, the gradient an integer sum of gradient codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..lookup import QuantizedBag, QuantizedLookup
from ..scheme import LayerScheme
from .quantized import ProductLayer, unless_no_grad


class _Table(ProductLayer):
    """A layer whose weight (V, D) is a table of rows. Its scheme's weight and gradient count; it has no activation.

    max_norm is honoured as in torch: rows that are looked up are renormalized in place, in floats. sparse=True is
    refused: quantize_ leaves such a layer float and says so.
    """

    weight: Tensor
    max_norm: float | None
    norm_type: float
    sparse: bool
    stateful_roles = ()  # a table of LearnedStep has the step that it would start with

    @classmethod
    def refuses(cls, module: Any) -> str:
        return "sparse=True: the integer sum of its gradient is dense" if module.sparse else ""

    def _prepared(self, index: Tensor) -> tuple[Tensor, Tensor, LayerScheme, Tensor | None]:
        """(weight, index as int64 (T), scheme, streams) after the renormalization that max_norm asks for."""
        if index.is_floating_point() or index.dtype == torch.bool:
            raise TypeError(f"{type(self).__name__} takes integer indices, not {index.dtype}")
        if self.max_norm is not None:
            with torch.no_grad():
                torch.embedding_renorm_(self.weight, index.contiguous(), self.max_norm, self.norm_type)
        scheme = self.scheme if self.training else self.scheme.deterministic_forward()
        (weight,) = unless_no_grad(self.weight)
        streams = self.draw_streams(self.scheme.stochastic, self.weight, scheme.gradient_samples)
        return weight, index.reshape(-1).long(), scheme, streams


class Embedding(_Table, nn.Embedding, replaces=nn.Embedding):
    """torch.nn.Embedding with its weight and its gradient as codes. index (...) -> (..., D)

    padding_idx, max_norm and scale_grad_by_freq work as in torch; sparse=True raises ValueError.

    >>> import torch, subbyte as sb
    >>> table = sb.nn.Embedding(10, 3, scheme=sb.Scheme.from_name("int8").layer)
    >>> table(torch.tensor([[1, 2], [2, 9]])).shape
    torch.Size([2, 2, 3])
    """

    def forward(self, index: Tensor) -> Tensor:
        weight, tokens, scheme, streams = self._prepared(index)
        padding = -1 if self.padding_idx is None else self.padding_idx
        y = QuantizedLookup.apply(weight, tokens, padding, self.scale_grad_by_freq, scheme, streams, self.record)
        return y.view(*index.shape, self.embedding_dim)


class EmbeddingBag(_Table, nn.EmbeddingBag, replaces=nn.EmbeddingBag):
    """torch.nn.EmbeddingBag with its weight and its gradient as codes. index (B, N), or (T) with offsets (B) -> (B, D)

    mode sum, mean or max; padding_idx, max_norm, include_last_offset and scale_grad_by_freq (not with max) as torch
    documents them (its CPU kernel divides by the count of another row: pytorch/pytorch issue 190063).
    per_sample_weights raises NotImplementedError, sparse=True ValueError.
    """

    def forward(self, index: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        if per_sample_weights is not None:
            raise NotImplementedError(
                "EmbeddingBag has no integer form of per_sample_weights: keep this layer float (filter_fn of quantize_)"
            )
        if self.mode == "max" and self.scale_grad_by_freq:
            raise ValueError("mode max does not support scale_grad_by_freq")
        bag, bags = self._bags(index, offsets)
        weight, tokens, scheme, streams = self._prepared(index)
        if self.padding_idx is not None:
            bag = torch.where(tokens == self.padding_idx, -1, bag)
        args = (bag, bags, self.mode, self.scale_grad_by_freq, scheme, streams, self.record)
        return QuantizedBag.apply(weight, tokens, *args)

    def _bags(self, index: Tensor, offsets: Tensor | None) -> tuple[Tensor, int]:
        """(the bag of each token, how many bags)."""
        if index.ndim == 2:
            if offsets is not None:
                raise ValueError("offsets must be None for indices (B, N): every row is a bag")
            return torch.arange(index.shape[0], device=index.device).repeat_interleave(index.shape[1]), index.shape[0]
        if index.ndim != 1 or offsets is None or offsets.ndim != 1:
            raise ValueError(f"EmbeddingBag takes indices (B, N), or (T) with offsets (B), not {tuple(index.shape)}")
        if offsets.device.type == "cpu" and offsets.numel() and (offsets[0] != 0 or offsets[-1] > index.numel()):
            raise ValueError(f"offsets run from 0 to at most {index.numel()}, not {offsets.tolist()}")
        position = torch.arange(index.numel(), device=index.device)
        bag = torch.bucketize(position, offsets.long(), right=True) - 1
        if not self.include_last_offset:
            return bag, offsets.numel()
        bags = offsets.numel() - 1
        return torch.where(bag >= bags, -1, bag), bags
