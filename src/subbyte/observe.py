"""What a layer remembers of its last call: which kernels ran, and (when asked) how well each operand was quantized."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from .qtensor import Emulated, QTensor


@dataclass
class OperandStats:
    """How one tensor was quantized.

    sqnr_db      20 log10(|x| / |x - dequantized x|), inf for a tensor that is exact
    clipped_pct  share of elements beyond the largest code, more than half a step
    zero_pct     share of codes (of an emulated tensor: values) that are 0
    format       of the codes, before a shift that they hold
    groups_used  how many different exponents occur (1 without a shift)
    ranges       max |x| of each channel (axis 1), exponents the group of each; both None for one-axis tensors
    lost         how many channels have an error as large as they are, |x_k - dequantized x_k| >= |x_k| > 0
    """

    format: str
    quantizer: str
    sqnr_db: float
    clipped_pct: float
    zero_pct: float
    groups_used: int
    ranges: list[float] | None = None
    exponents: list[int] | None = None
    lost: int = 0

    @classmethod
    def measure(cls, x: Tensor, q: QTensor | Emulated, quantizer: Any) -> OperandStats:
        """Compare x with what its Quantizer made of it, in a few passes over x: only done when a layer is observed."""
        x, back = x.detach().float(), q.dequantize()
        channels = [i for i in range(x.ndim) if i != 1]
        squares = [t.double().square() for t in (x - back, x)]
        error, signal = (t.sum().sqrt().item() for t in squares)
        size = max(x.numel(), 1)
        ranges = x.abs().amax(channels).tolist() if x.ndim > 1 and x.numel() else None
        lost = 0
        if ranges:
            errors, signals = (t.sum(channels) for t in squares)
            lost = int(((errors >= signals) & (signals > 0)).sum())
        sqnr, zeros = _decibels(signal, error), q.codes == 0 if isinstance(q, QTensor) else back == 0
        zero_pct = 100 * zeros.sum().item() / size
        if isinstance(q, Emulated):  # none of these clips, and none has groups
            return cls(str(q.format), str(quantizer), sqnr, 0.0, zero_pct, 1, ranges, None, lost)
        beyond = x.abs() > (q.format.qmax + 0.5) * q.effective_scale()
        if not q.format.signed:
            beyond = beyond | (x < -0.5 * q.effective_scale())
        shift = None if q.shift is None else q.shift.flatten().tolist()
        return cls(
            format=str(quantizer.format),
            quantizer=str(quantizer),
            sqnr_db=sqnr,
            clipped_pct=100 * beyond.sum().item() / size,
            zero_pct=zero_pct,
            groups_used=quantizer.groups_used(x, q),
            ranges=ranges,
            exponents=shift,
            lost=lost,
        )

    def to_dict(self) -> dict:
        return asdict(self)


def _decibels(signal: float, error: float) -> float:
    if math.isnan(signal) or not math.isfinite(error):  # NaN or Inf in the tensor: nothing was represented
        return math.nan
    return 20 * math.log10(signal / error) if error > 0 and signal > 0 else math.inf


@dataclass
class LayerRecord:
    """Attached to every subbyte layer as `record`.

    kernels   product or op -> kernel that ran in the last call ("emulated", "float" where no integer product did)
    operands  role -> OperandStats of the last observed call
    armed     observe the next forward and its backward
    """

    kernels: dict[str, str] = field(default_factory=dict)
    operands: dict[str, OperandStats] = field(default_factory=dict)
    armed: bool = False

    def measure(self, role: str, x: Tensor, q: QTensor | Emulated | Tensor, quantizer: Any) -> None:
        """Keep the statistics of one operand if armed; a role that stays float has none."""
        if self.armed and not isinstance(q, Tensor) and not torch.compiler.is_compiling():
            self.operands[role] = OperandStats.measure(x, q, quantizer)


def arm(modules: Iterable[torch.nn.Module], on: bool = True) -> None:
    """Let every subbyte layer among modules observe its calls from now on (or stop)."""
    for m in modules:
        record = getattr(m, "record", None)
        if isinstance(record, LayerRecord):
            record.armed = on
