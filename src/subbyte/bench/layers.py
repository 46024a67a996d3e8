"""Suites linear, conv and norm: one layer forward and backward, quantization included.

Every call computes the output and the gradients of the input and of each parameter. Floats cross the layer's border in
each case: float32, or under autocast the dtype that the layer before would hand over; for ours, the faster of float32
and bfloat16.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from subbyte.bench import evidence, impls
from subbyte.bench.timing import Candidate, Case, Prepared, Trial
from subbyte.nn import REGISTRY, NormLayer
from subbyte.nn.norm import FLOAT_L1
from subbyte.nn.quantized import change_class
from subbyte.scheme import Scheme

LINEARS = ((512,) * 3, (1024,) * 3, (4096, 512, 2048))  # tokens, inputs, outputs
CONVS = ((128, 16, 32), (128, 32, 16), (128, 64, 8), (64, 64, 32), (64, 128, 16))  # N, C = O, H = W
LAYER_NORMS = ((4096, 512), (2048, 4096))  # rows, features
QUICK_LINEARS, QUICK_CONVS, QUICK_LAYER_NORMS = ((64, 32, 48),), ((2, 8, 6),), ((32, 24),)

Step = Callable[[], Tensor]


def conv_name(n: int, c: int, h: int) -> str:
    return f"N{n} C{c}@{h}"


def linear(quick: bool) -> list[Case]:
    return [
        Case("linear", f"{m}x{k}x{n}", partial(_linear, m, k, n)) for m, k, n in (QUICK_LINEARS if quick else LINEARS)
    ]


def conv(quick: bool) -> list[Case]:
    return [Case("conv", conv_name(*size), partial(_conv, *size)) for size in (QUICK_CONVS if quick else CONVS)]


def norm(quick: bool) -> list[Case]:
    convs = QUICK_CONVS if quick else CONVS
    rows = QUICK_LAYER_NORMS if quick else LAYER_NORMS
    batch = [Case("norm", f"BatchNorm2d {conv_name(*size)}", partial(_batch_norm, *size)) for size in convs]
    return batch + [Case("norm", f"LayerNorm {r}x{f}", partial(_layer_norm, r, f)) for r, f in rows]


def _linear(m: int, k: int, n: int) -> list[Candidate]:
    setting = Setting(nn.Linear(k, n), torch.randn(m, k), torch.randn(m, n), {"": torch.contiguous_format})
    macs = 2 * 3 * m * k * n
    found = setting.candidates(macs, 0, impls.OURS)
    found.append(Candidate(impls.TORCHAO, partial(setting.torchao, False), macs))
    found.append(Candidate(impls.TORCHAO_COMPILED, partial(setting.torchao, True), macs))
    return found


def _conv(n: int, c: int, h: int) -> list[Candidate]:
    x, g = torch.randn(n, c, h, h).relu(), torch.randn(n, c, h, h)
    setting = Setting(nn.Conv2d(c, c, 3, padding=1, bias=False), x, g, impls.LAYOUTS, behind_relu=True)
    return setting.candidates(2 * 3 * n * c * c * h * h * 9, 0, impls.OURS)


_RECIPES = tuple(f"subbyte/{r}" for r in impls.RECIPES)
_NORM_BYTES = 4 * 4  # of an element in fp32: x read and y written, g read and dx written


def _batch_norm(n: int, c: int, h: int) -> list[Candidate]:
    x, g = torch.randn(n, c, h, h), torch.randn(n, c, h, h)
    return Setting(nn.BatchNorm2d(c), x, g, impls.LAYOUTS).candidates(0, _NORM_BYTES * x.numel(), _RECIPES)


def _layer_norm(rows: int, features: int) -> list[Candidate]:
    x, g = torch.randn(rows, features), torch.randn(rows, features)
    setting = Setting(nn.LayerNorm(features), x, g, {"": torch.contiguous_format})
    return setting.candidates(0, _NORM_BYTES * x.numel(), _RECIPES)


class Setting:
    """A float layer with its input and the gradient of its output, from which every implementation is made."""

    def __init__(
        self,
        layer: nn.Module,
        x: Tensor,
        g: Tensor,
        layouts: dict[str, torch.memory_format],
        behind_relu: bool = False,
    ) -> None:
        self.layer, self.x, self.g, self.layouts, self.behind_relu = layer, x, g, layouts, behind_relu

    def candidates(self, ops: int, moved: int, ours: Sequence[str]) -> list[Candidate]:
        found = [Candidate(name, partial(self.ours, name), ops, moved) for name in ours]
        for name, dtype in impls.FLOATS.items():
            prepare = partial(self.floats, dtype, ops)
            found.append(Candidate(name, prepare, ops, moved * dtype.itemsize // 4))
        return found

    def ours(self, name: str) -> Prepared:
        trials, found = [], {}
        for way, layout, dtype in impls.ways(self.layouts):
            layer = copy.deepcopy(self.layer).to(memory_format=layout)  # type: ignore[call-overload]
            change_class(layer, REGISTRY[type(layer)])
            layer._attach(self._scheme(layer, name))
            step = self._step(layer, dtype, layout)
            exact = partial(self._exact, layer)
            multiplies = not isinstance(layer, NormLayer)
            found = evidence.of_training(
                layer, step, exact, emulated=impls.emulated(name) if multiplies else (), multiplies=multiplies
            )
            trials.append(Trial(step, way))
        return Prepared(trials, found)

    def _scheme(self, layer: nn.Module, name: str) -> Any:
        scheme: Scheme = impls.scheme(name)
        if isinstance(layer, NormLayer):
            return scheme.norm
        return scheme.layer.unsigned_activation() if self.behind_relu else scheme.layer

    def _exact(self, layer: nn.Module) -> Tensor:
        """What the layer computes, in floats: for a norm the same statistic."""
        if isinstance(layer, NormLayer):
            same = copy.deepcopy(layer)
            same.scheme = FLOAT_L1
            return same(self.x)
        return self.layer(self.x)

    def floats(self, dtype: torch.dtype, ops: int) -> Prepared:
        if dtype == torch.float16:
            impls.require_fp16(ops, seconds=2.0)
        return Prepared(
            [
                Trial(self._step(copy.deepcopy(self.layer).to(memory_format=layout), dtype, layout), way)  # type: ignore[call-overload]
                for way, layout in self.layouts.items()
            ]
        )

    def torchao(self, compiled: bool) -> Prepared:
        """In float32 and in bfloat16: the faster counts."""
        trials, found = [], {}
        if compiled:
            torch.compiler.reset()  # or the graphs of many cases add up to a limit beyond which nothing is compiled
        for dtype in (torch.float32, torch.bfloat16):
            model = impls.torchao_linears(nn.Sequential(copy.deepcopy(self.layer)).to(dtype))
            eager = self._step(model, dtype, torch.contiguous_format)
            found = evidence.of_torchao(eager, lambda: self.layer(self.x))
            if compiled:
                model = impls.compiled(model, partial(self._step_once, dtype=dtype))
            trials.append(Trial(self._step(model, dtype, torch.contiguous_format), str(dtype).removeprefix("torch.")))
        return Prepared(trials, found)

    def _step_once(self, layer: nn.Module, dtype: torch.dtype) -> None:
        self._step(layer, dtype, torch.contiguous_format)()

    def _step(self, layer: nn.Module, dtype: torch.dtype, layout: torch.memory_format) -> Step:
        """Forward and backward of `layer`, returning its output."""
        x, g = (t.to(dtype).contiguous(memory_format=layout) for t in (self.x, self.g))
        x.requires_grad_()
        own = next(layer.parameters()).dtype
        parameters = list(layer.parameters())

        def step() -> Tensor:
            with impls.autocast(dtype if own == torch.float32 else torch.float32):
                y = layer(x)
            torch.autograd.grad(y, (x, *parameters), g.to(y.dtype))
            return y

        return step
