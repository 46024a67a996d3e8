"""Norms of 4 bits: what a clip of the input and groups of tokens for the gradient are for, and which kernels run."""

import torch

import test_fusion
from integer_nets import needs_library
from models_for_tests import distance
from subbyte import NormScheme
from test_norm_layers import batch_norm, exact


def test_a_clip_and_groups_of_tokens_are_what_few_bits_want():
    """At 4 bits: tokens of a gradient octaves apart, and an input with a few values far out."""
    torch.manual_seed(0)
    x = torch.randn(8, 5, 16, 16) + 0.3 * torch.randn(8, 5, 16, 16) ** 3
    g = torch.randn(8, 5, 16, 16) * 2.0 ** -torch.randint(0, 8, (8, 1, 16, 16))
    plain, better = (batch_norm(NormScheme("l1", 4, 4, 4, 4, 4, **more)) for more in ({}, dict(clip=0.5, groups=5)))
    errors = []
    for layer in (plain, better):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.backward(g)
        weight, bias = (p.detach().view(1, -1, 1, 1) for p in (layer.weight, layer.bias))
        y_exact, dx, _, _ = exact(x, weight, bias, g, (0, 2, 3), layer.eps, "l1")
        errors.append((distance(y, y_exact), distance(leaf.grad, dx)))
    assert errors[1][0] < 0.75 * errors[0][0]
    assert errors[1][1] < 0.6 * errors[0][1]


@needs_library
def test_a_norm_of_few_bits_runs_its_gradient_in_single_ops():
    x = test_fusion.images(3, 3, 6, 6)
    unfused, fused = test_fusion.pair(test_fusion.Net(test_fusion.Block(8)), test_fusion.FEW_BITS, x)
    assert len(fused.subbyte_fusion.chains) == 2
    test_fusion.assert_same(unfused, fused, x, steps=1)
    record = fused.body[0].bn1.record.kernels
    assert {"chain_norm", "relu_grad", "quantize_tokens", "norm_grad_sums", "norm_grad_range"} <= set(record)
    assert "chain_norm_grad" not in record
    assert "reference" not in record.values()
