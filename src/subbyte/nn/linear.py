"""Linear: y = x W^T + b, its output and both gradients as integer products."""

from __future__ import annotations

from torch import Tensor, nn

from ..products import MatmulProducts
from .quantized import ProductLayer

_PRODUCTS = MatmulProducts()


class Linear(ProductLayer, nn.Linear, replaces=nn.Linear):
    """torch.nn.Linear with the operands of its three products quantized as its LayerScheme says.

    x (..., I) -> (..., O), in x's dtype (under autocast: in the dtype of autocast).

    >>> import torch, subbyte as sb
    >>> layer = sb.nn.Linear(16, 4, scheme=sb.Scheme.from_name("int4").layer)
    >>> layer(torch.randn(2, 3, 16)).shape
    torch.Size([2, 3, 4])
    """

    def products_of_input(self) -> MatmulProducts:
        return _PRODUCTS

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"Linear expects inputs (..., {self.in_features}), not {tuple(x.shape)}")
        y = self.multiply(x.reshape(-1, self.in_features), _PRODUCTS)
        return y.reshape(*x.shape[:-1], self.out_features)
