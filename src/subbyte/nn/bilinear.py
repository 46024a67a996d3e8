"""Bilinear: two integer products, one with the weight and one of the result with the second input."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from ..products import MatmulProducts, PairProducts
from .quantized import ProductLayer, signed_activation

_BY_WEIGHT, _BY_INPUT = MatmulProducts(), PairProducts()


class Bilinear(ProductLayer, nn.Bilinear, replaces=nn.Bilinear):
    """torch.nn.Bilinear in integers: y_o = x1^T W_o x2 + b_o. x1 (..., I), x2 (..., J) -> (..., O)

    p = x1 W is an integer product (its rows (J O) are what the weight's quantizer sees), and so is y = p x2 for each
    sample, whose two operands p and x2 take the quantizer of activations, signed; gradients likewise. The record names
    the second product's three pair_output, pair_grad_input, pair_grad_weight.
    """

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        i, j, o = self.in1_features, self.in2_features, self.out_features
        if x1.shape[-1] != i or x2.shape[-1] != j or x1.shape[:-1] != x2.shape[:-1]:
            raise ValueError(
                f"Bilinear expects inputs (..., {i}) and (..., {j}), not {tuple(x1.shape)}, {tuple(x2.shape)}"
            )
        rows = self.weight.permute(2, 0, 1).reshape(j * o, i)
        p = self.run_product(x1.reshape(-1, i), rows, None, _BY_WEIGHT, self.scheme)
        scheme = signed_activation(self.scheme)
        scheme = dataclasses.replace(scheme, weight=scheme.activation)
        y = self.run_product(p.view(-1, j, o), x2.reshape(-1, j), self.bias, _BY_INPUT, scheme)
        return y.view(*x1.shape[:-1], o)
