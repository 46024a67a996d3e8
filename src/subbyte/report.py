"""report: what a model's layers really do. The share of integer multiply-accumulates is counted, never assumed."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from .convert import CONVERSION, Conversion, quantized_layers
from .gain import Gain, gains
from .observe import LayerRecord, OperandStats, arm

aten = torch.ops.aten
_OPS = torch.ops.subbyte


class MacCounter(TorchDispatchMode):
    """Counts the multiply-accumulates of every product that runs inside the block, forward and backward.

    integer  those of subbyte's own products and of aten._int_mm
    floats   op -> those of any float mm, bmm, convolution, attention, recurrent layer...: each counts against the share

    It sees what reaches the dispatcher, not a list of modules: a layer that silently stayed float shows here. Products
    of a tensor with one number for each element (a norm's gamma, an outer product) have no accumulation to count.
    """

    def __init__(self) -> None:
        super().__init__()
        self._flops: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        op = func._overloadpacket
        if op not in _FORMULAS:
            with self:  # an op made of others, which inference mode leaves whole
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if op in _FORMULAS:
            self._flops[op] += _FORMULAS[op](*args, **kwargs, out_val=out)
        return out

    @property
    def integer(self) -> int:
        """Multiply-accumulates in integer products."""
        return sum(n for op, n in self._flops.items() if op in _PRODUCTS) // 2

    @property
    def floats(self) -> dict[str, int]:
        """Multiply-accumulates of each float op that made any, by its name."""
        return {str(op): n // 2 for op, n in self._flops.items() if op not in _PRODUCTS and n}

    @property
    def integer_share(self) -> float:
        """integer / all, NaN if nothing multiplied."""
        total = self.integer + sum(self.floats.values())
        return self.integer / total if total else math.nan


def _matmul_flops(a, a_shift, a_bits, a_signed, a_max, b, *_rest, out_shape=None, **_kwargs) -> int:
    return 2 * math.prod(a) * b[-1]


def _matmul_packed_flops(a, a_shift, a_bits, a_signed, a_max, b, size, *_rest, out_shape=None, **_kwargs) -> int:
    return 2 * math.prod(a) * size[-1]


def _linear_flops(x, w, *_rest, out_shape=None, **_kwargs) -> int:
    return 2 * math.prod(x) * w[0]


def _linear_backward_flops(
    g, stream, tokens, top, channel_top, apart, clip, bits, inputs, sums,
    x, x_scale, x_bits, x_signed, x_places, x_top, w, *_rest, out_shape=None, **_kwargs,
) -> int:  # fmt: skip
    return 2 * math.prod(g) * inputs * ((x is not None) + (w is not None))


def _conv_flops(a, a_shift, a_bits, a_signed, a_max, b, *_rest, out_shape=None, **_kwargs) -> int:
    return 2 * math.prod(out_shape) * math.prod(b[1:])  # every output pixel meets its group's whole kernel


def _grad_input_flops(a, a_shift, a_bits, a_signed, a_max, b, *_rest, out_shape=None, **_kwargs) -> int:
    return 2 * math.prod(a) * math.prod(b[1:])  # a is the gradient: the same products as the forward's


def _grad_weight_flops(a, *_rest, out_shape=None, **_kwargs) -> int:
    return 2 * math.prod(a) * math.prod(out_shape[1:])


def _matrix_flops(a, b, *_rest, out_shape=None, **_kwargs) -> int:
    return 2 * math.prod(a) * (b[-1] if len(b) > 1 else 1)


def _added_flops(bias, a, b, *_rest, out_shape=None, **_kwargs) -> int:
    return _matrix_flops(a, b)


def _attention_flops(q, k, v, *_rest, out_shape=None, **_kwargs) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward_flops(g, q, k, v, *_rest, out_shape=None, **_kwargs) -> int:
    return sdpa_backward_flop_count(g, q, k, v)


def _mha_flops(q, k, v, dim, heads, qkv, _qkv_bias, proj, *_rest, out_shape=None, **_kwargs) -> int:
    rows = q[0] * q[1]
    return 2 * (rows * (math.prod(qkv) + math.prod(proj)) + 2 * rows * k[1] * dim)


def _encoder_flops(x, dim, heads, qkv, b0, proj, b1, gelu, first, eps, n1, c1, n2, c2, w1, b2, w2, *_r, **_k) -> int:
    return _mha_flops(x, x, x, dim, heads, qkv, b0, proj) + 2 * x[0] * x[1] * (math.prod(w1) + math.prod(w2))


def _rnn_flops(x, w_input, w_hidden, *_rest, out_shape=None, **_kwargs) -> int:
    return 2 * x[0] * x[1] * (math.prod(w_input) + math.prod(w_hidden))


def _rnn_backward_flops(x, w_input, w_hidden, *_rest, out_shape=None, **_kwargs) -> int:
    return 2 * _rnn_flops(x, w_input, w_hidden)


def _trilinear_flops(a, b, c, *_rest, out_shape=None, **_kwargs) -> int:
    return 2 * a[0] * math.prod(b)


def _conv_backward_flops(g, x, w, _bias, _stride, _pad, _dilation, transposed, _more, _groups, mask, **_kwargs) -> int:
    """Each gradient has the products of the forward; torch's formula counts those of w groups times."""
    return 2 * (bool(mask[0]) + bool(mask[1])) * math.prod(x if transposed else g) * math.prod(w[1:])


def _with_range(formula: Callable[..., int]) -> Callable[..., int]:
    return lambda *args, out_shape, **kwargs: formula(*args, out_shape=out_shape[0], **kwargs)


def _on_shapes(formula: Callable[..., int]) -> Callable[..., int]:
    def run(*args, out_val, **kwargs) -> int:
        shaped = tree_map_only(Tensor, lambda t: t.shape, (args, kwargs, out_val))
        return formula(*shaped[0], **shaped[1], out_shape=shaped[2])

    return run


_PRODUCTS: dict[Any, Callable[..., int]] = {
    _OPS.int_matmul: _matmul_flops,
    _OPS.scaled_matmul: _matmul_flops,
    _OPS.scaled_matmul_packed: _matmul_packed_flops,
    _OPS.linear_forward: _linear_flops,
    _OPS.linear_backward: _linear_backward_flops,
    _OPS.scaled_conv2d: _conv_flops,
    _OPS.scaled_conv2d_grad_input: _grad_input_flops,
    _OPS.scaled_conv2d_grad_weight: _grad_weight_flops,
    _OPS.scaled_conv2d_amax: _with_range(_conv_flops),
    _OPS.scaled_conv2d_grad_input_plus: _grad_input_flops,
    _OPS.int_conv2d: _conv_flops,
    _OPS.int_conv2d_grad_input: _grad_input_flops,
    _OPS.int_conv2d_grad_weight: _grad_weight_flops,
    aten._int_mm: lambda a, b, *_r, out_shape=None, **_k: 2 * math.prod(a) * b[-1],
}
"""The integer ones."""

_MORE_FLOATS: dict[Any, Callable[..., int]] = {
    **{op: _matrix_flops for op in (aten.mv, aten.dot, aten.vdot)},
    **{op: _added_flops for op in (aten.addmv, aten.addbmm, aten._addmm_activation, aten._sparse_addmm)},
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    aten._native_multi_head_attention: _mha_flops,
    aten._transformer_encoder_layer_fwd: _encoder_flops,
    aten.mkldnn_rnn_layer: _rnn_flops,
    aten.mkldnn_rnn_layer_backward: _rnn_backward_flops,
    aten._trilinear: _trilinear_flops,
    aten.convolution_backward: _conv_backward_flops,
}
"""What torch's own registry of formulas lacks, or has wrong."""

_FORMULAS = {**flop_registry, **{op: _on_shapes(f) for op, f in {**_PRODUCTS, **_MORE_FLOATS}.items()}}


@dataclass(frozen=True)
class LayerReport:
    """One layer: what it is, what ran, (where observed) how each operand was quantized, (where timed) what it gains."""

    name: str
    type: str
    scheme: str
    kernels: dict[str, str]
    operands: dict[str, OperandStats]
    gain: Gain | None = None

    @property
    def gradient_ranges(self) -> Tensor | None:
        """max |g| of each channel of the output's gradient in the observed step."""
        return self._of_gradient("ranges", torch.float32)

    @property
    def gradient_exponents(self) -> Tensor | None:
        """The group's exponent of each channel in the observed step."""
        return self._of_gradient("exponents", torch.int64)

    @property
    def lost_channels(self) -> tuple[int, int]:
        """(channels of the gradient in the observed step with an error as large as they are, those that are not 0)."""
        stats = self.operands.get("gradient")
        return (stats.lost, sum(r > 0 for r in stats.ranges or ())) if stats else (0, 0)

    def _of_gradient(self, what: str, dtype: torch.dtype) -> Tensor | None:
        stats = self.operands.get("gradient")
        values = None if stats is None else getattr(stats, what)
        return None if values is None else torch.tensor(values, dtype=dtype)

    def row(self) -> dict[str, Any]:
        """The layer as one flat row; None where it was not observed."""

        def each(field_name: str) -> dict[str, Any]:
            return {f"{role}_{field_name}": getattr(s, field_name) for role, s in self.operands.items()}

        products = {k: self.kernels.get(k, "") for k in ("output", "grad_input", "grad_weight")}
        ran = sorted({v for k, v in self.kernels.items() if k not in products})
        row = {"name": self.name, "type": self.type, "scheme": self.scheme, **products, "kernels": ran}
        for f in ("format", "sqnr_db", "clipped_pct", "zero_pct", "groups_used"):
            row.update(each(f))
        return row if self.gain is None else {**row, "gain": self.gain.to_dict()}


@dataclass(frozen=True)
class Report:
    """What report() found. print() it, or take .rows, .layers, .integer_share, .to_dict(), .table()."""

    layers: dict[str, LayerReport]
    conversion: Conversion
    integer_share: float | None = None
    integer_macs: int | None = None
    float_macs: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A dictionary for each layer, in the order of the model: plain data."""
        return [layer.row() for layer in self.layers.values()]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "integer_share": self.integer_share,
            "integer_macs": self.integer_macs,
            "float_macs": self.float_macs,
            "left_float": self.conversion.left_float,
            "signs": self.conversion.signs,
            "layers": [
                {**layer.row(), "operands": {k: s.to_dict() for k, s in layer.operands.items()}}
                for layer in self.layers.values()
            ],
        }

    def table(self):
        """A rich Table, a line a layer: formats, products, kernels, and each operand's statistics."""
        from rich.table import Table

        table = Table(title="quantized layers")
        headings = ["layer", "type", "x / w / g", "out, gx, gw", "kernels", "SQNR dB", "clipped %", "zero %", "groups"]
        timed = any(layer.gain for layer in self.layers.values())
        headings += ["gain"] if timed else []
        for heading in headings:
            table.add_column(heading, overflow="fold")
        for layer in self.layers.values():
            stats = [layer.operands.get(r) for r in ("activation", "weight", "gradient")]
            row = layer.row()
            table.add_row(
                layer.name or "(the model)",
                layer.type,
                " / ".join("-" if s is None else s.format for s in stats) if any(stats) else layer.scheme,
                ", ".join(row[k] for k in ("output", "grad_input", "grad_weight") if row[k]) or "-",
                ", ".join(row["kernels"]) or "not run yet",
                _each(stats, "sqnr_db", ".1f"),
                _each(stats, "clipped_pct", ".2f"),
                _each(stats, "zero_pct", ".0f"),
                _each(stats[2:], "groups_used", "d"),
                *([f"{layer.gain.ratio:.2f}" if layer.gain else "-"] if timed else []),
            )
        return table

    def summary(self) -> str:
        """The lines under the table."""
        lines = []
        if self.integer_share is None:
            lines.append("integer share of multiply-accumulates: not counted (call report(model, x, y, loss_fn))")
        else:
            others = ", ".join(f"{op} {n:,}" for op, n in self.float_macs.items())
            lines.append(
                f"integer share of multiply-accumulates, forward and backward: {100 * self.integer_share:.2f} % "
                f"({self.integer_macs:,} integer; float: {others or 'none'})"
            )
        timed = {layer.name or "(the model)": layer.gain for layer in self.layers.values() if layer.gain}
        slower = [f"{name} {gain.ratio:.2f}" for name, gain in timed.items() if gain.slower]
        if timed:
            lines.append(
                f"gain: time of torch's float layer over that of this one, {torch.get_num_threads()} CPU threads. "
                + (f"Too small to gain here: {', '.join(slower)} (fastest_here leaves them float)." if slower else "")
            )
        counts = {layer.name or "(the model)": layer.lost_channels for layer in self.layers.values()}
        if lost := [f"{name} {n} of {of}" for name, (n, of) in counts.items() if 2 * n > of]:
            lines.append(
                f"channels of gradients with an error as large as they are: {', '.join(lost)}. They lie far below the "
                "loudest; more groups of channels keep them (ShiftQuant's groups, TokenShiftQuant's channel_groups; "
                "the recipe int4-wide)."
            )
        if self.conversion.signs:
            lines.append(f"activations are signed throughout: {self.conversion.signs}")
        lines += [f"left float: {name or '(the model)'}: {why}" for name, why in self.conversion.left_float.items()]
        return "\n".join(lines)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=150, no_color=True)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get() + self.summary()


def _each(stats: list[OperandStats | None], name: str, spec: str) -> str:
    return " / ".join("-" if s is None else format(getattr(s, name), spec) for s in stats) if any(stats) else ""


def report(
    model: nn.Module,
    x: Any = None,
    y: Any = None,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    timed: bool = False,
) -> Report:
    """What each quantized layer does: formats, the kernels that really ran, and how well each operand is quantized.

    Without x: the layers as they are, with the kernels of their last call. With x (a batch, or a tuple of arguments):
    one training step on a copy of the model, forward and backward, under MacCounter, with every layer observed. The
    loss is loss_fn(model(x), y), or the mean square of the output if loss_fn is None. With timed, each layer is timed
    against torch's float layer, too (gains), and those too small to gain on this machine are named. The model, its
    buffers, its gradients and torch's random state are left as they were.
    """
    conversion = getattr(model, CONVERSION, None)
    if conversion is None:
        raise TypeError("report: the model is not quantized; call quantize_(model, scheme) first")
    if x is None:
        if timed:
            raise ValueError("report: layers are timed on what they get from a batch; give x, too")
        return Report(_layer_reports(model), conversion)
    gain_of = gains(model, x) if timed else {}
    probe = copy.deepcopy(model).train()
    probe.zero_grad(set_to_none=True)
    x = tree_map_only(Tensor, Tensor.detach, x)  # or its gradient would grow
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)), torch.enable_grad(), MacCounter() as counter:
        arm(probe.modules())
        out = probe(*x) if isinstance(x, tuple) else probe(x)
        loss = loss_fn(out, y) if loss_fn is not None else out.float().square().mean()
        if loss.requires_grad:  # not where every parameter is frozen
            loss.backward()
    layers = {name: replace(layer, gain=gain_of.get(name)) for name, layer in _layer_reports(probe).items()}
    return Report(layers, conversion, counter.integer_share, counter.integer, counter.floats)


def _layer_reports(model: nn.Module) -> dict[str, LayerReport]:
    out = {}
    for name, layer in quantized_layers(model).items():
        record: LayerRecord = layer.record
        out[name] = LayerReport(
            name, layer.replaces.__name__, str(layer.scheme), dict(record.kernels), dict(record.operands)
        )
    return out
