"""Float64 models of what a quantized layer computes, and small networks, for several test files."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

import subbyte as sb
from subbyte.autograd import STREAMS
from subbyte.numerics import draw_stream
from subbyte.products import swap_channels

RECIPES = ("int4", "int6", "int8")
BITS = {"int4": 4, "int6": 6, "int8": 8}
PRODUCTS = ("output", "grad_input", "grad_weight")

ERROR_OF_BITS = {4: (0.02, 0.6), 6: (0.004, 0.15), 8: (0.0005, 0.04)}
"""Relative error of a quantized product of normal data: above the first (it was quantized), below the second."""


def relative(a: Tensor, b: Tensor) -> float:
    """Largest |a - b| against the largest |b|."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.abs().max())


def distance(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b| in the Euclidean norm."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def ran(layer) -> dict[str, str]:
    """Which form each of the three products took."""
    return {k: v for k, v in layer.record.kernels.items() if k in PRODUCTS}


INTEGER = dict.fromkeys(PRODUCTS, "integer")


def dequantized(quantizer, x: Tensor, stream: Tensor | None) -> Tensor:
    """x as the layer sees it, in float64; x itself where the role is left in floats."""
    if quantizer is None:
        return x.detach().double()
    return quantizer(x.detach(), stream if quantizer.stochastic else None).dequantize(torch.float64)


def product_model(
    layer, x: Tensor, g_like: Callable[[Tensor], Tensor], formula: Callable[..., Tensor], seed: int = 3
) -> dict[str, Tensor]:
    """Run the layer forward and backward, and the formula in float64 on the operands that the layer quantized.

    formula (x, w, b) -> y. Returns y, x, w, b (gradients) of the layer, of the model under "model_*" and of the same
    formula without any quantization under "float_*".
    """
    layer.zero_grad()
    x = x.detach().requires_grad_()
    torch.manual_seed(seed)
    y = layer(x)
    g = g_like(y)
    y.backward(g)
    found = {"y": y.detach(), "x": x.grad, "w": layer.weight.grad}
    if layer.bias is not None:
        found["b"] = layer.bias.grad

    torch.manual_seed(seed)
    streams = draw_stream(STREAMS)
    scheme = layer.scheme
    if layer.weight.ndim == 2:  # what a Linear multiplies are rows
        x, g, found["y"] = (t.reshape(-1, t.shape[-1]) for t in (x, g, found["y"]))
        found["x"] = found["x"].reshape(x.shape)
    qx, qw = dequantized(scheme.activation, x, streams[1]), _dequantized_weight(layer, streams[2])
    qg = dequantized(scheme.gradient, g, streams[0])
    for prefix, operands, gradient in (
        ("model", (qx, qw), qg),
        ("float", (x.detach().double(), layer.weight.detach().double()), g.double()),
    ):
        a, w = (t.clone().requires_grad_() for t in operands)
        b = None if layer.bias is None else layer.bias.detach().double().requires_grad_()
        out = formula(a, w, b)
        out.backward(gradient)
        found |= {f"{prefix}_y": out.detach(), f"{prefix}_x": a.grad, f"{prefix}_w": w.grad}
        if b is not None:
            found[f"{prefix}_b"] = b.grad
    return found


def _dequantized_weight(layer, stream: Tensor) -> Tensor:
    """As the layer quantizes it: output channels are axis 0, those of a transposed convolution too."""
    if not isinstance(layer, _ConvTransposeNd):
        return dequantized(layer.scheme.weight, layer.weight, stream)
    outputs_first = swap_channels(layer.weight, layer.groups)
    return swap_channels(dequantized(layer.scheme.weight, outputs_first, stream), layer.groups)


def assert_product(found: dict[str, Tensor], bits: int | None = None) -> None:
    """Each tensor equals the model's; and, given bits, differs from the float one by a plausible quantization error."""
    for key in ("y", "x", "w", "b"):
        if key not in found:
            continue
        assert found[key].shape == found[f"model_{key}"].shape
        assert relative(found[key], found[f"model_{key}"]) < 3e-6, key
        if bits is not None and key != "b":
            low, high = ERROR_OF_BITS[bits]
            assert low < distance(found[key], found[f"float_{key}"]) < high, key


# ------------------------------------------------------------------------------------------------------------ norms

L1_FACTOR = math.sqrt(math.pi / 2)


def norm_float64(x: Tensor, gamma, beta, dims, eps: float, kind: str) -> Tensor:
    """The textbook formula; autograd differentiates it (the L1 one almost everywhere)."""
    mu = x.mean(dims, keepdim=True)
    centred = x - mu
    if kind == "l1":
        d = L1_FACTOR * centred.abs().mean(dims, keepdim=True) + math.sqrt(eps)
    else:
        d = (centred.square().mean(dims, keepdim=True) + eps).sqrt()
    y = centred / d
    y = y if gamma is None else y * gamma
    return y if beta is None else y + beta


# --------------------------------------------------------------------------------------------------------- networks


def conv_net(bias: bool = True) -> nn.Sequential:
    """Two conv-norm-ReLU, flatten, Linear. (B, 3, 8, 8) -> (B, 5)."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=bias), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 6, 3, stride=2, bias=bias), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(6 * 9, 5)),
    )


def mlp(norm: bool = True) -> nn.Sequential:
    """(B, 12) -> (B, 4), three Linears, a LayerNorm."""
    torch.manual_seed(0)
    middle = [nn.LayerNorm(16)] if norm else []
    return nn.Sequential(nn.Linear(12, 16), *middle, nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def scheme_of(quantizer=None, **roles) -> sb.LayerScheme:
    """A LayerScheme with one quantizer everywhere, except where a role says otherwise."""
    return sb.LayerScheme(**{"weight": quantizer, "activation": quantizer, "gradient": quantizer, **roles})


def gradients(model: nn.Module, run: Callable[[], Tensor], seed: int = 11) -> list[Tensor]:
    """The gradients of every parameter after one backward of run(), from a fixed random state."""
    model.zero_grad()
    torch.manual_seed(seed)
    run().square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    """Bit for bit."""
    return len(a) == len(b) > 0 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


NETS = {"conv": (conv_net, (4, 3, 8, 8)), "mlp": (mlp, (6, 12))}


def quantized(net: str, scheme="int4") -> tuple[nn.Module, Tensor]:
    """One of NETS, converted, and a batch for it."""
    make, shape = NETS[net]
    torch.manual_seed(5)
    return sb.quantize_(make(), scheme), torch.randn(shape)


def layers(model: nn.Module) -> list:
    """Its subbyte layers."""
    return [m for m in model.modules() if isinstance(m, sb.nn.QuantizedLayer)]
