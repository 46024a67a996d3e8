"""Quantizers: frozen dataclasses that turn a float tensor into a QTensor. How a scale is chosen is decided only here.

Layout shared by all roles, so that an axis means the same everywhere:
    activation  (B, I) or (N, C, H, W)      axis 0 = samples, axis 1 = the channels that the forward product reduces
    weight      (O, I) or (O, C, R, S)      axis 0 = output channels, axis 1 = input channels
    gradient    (B, O) or (N, O, P, Q)      axis 0 = samples, axis 1 = the channels that grad_input reduces

Notation: b bits, Q the largest code, r_k = max |x| in channel k, R = max_k r_k.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import ops
from .numerics import MAX_EXPONENT, RANGE_FLOOR, IntFormat, power_of_two, step
from .qtensor import QTensor

ROUNDINGS = ("nearest", "stochastic")


@dataclass(frozen=True)
class Quantizer:
    """What every quantizer has: an integer format and a rounding. Subclasses say how the scale is chosen.

    Raises ValueError for bits outside 2..8, an unknown rounding, or a field of another type than declared.
    """

    bits: int = 8
    signed: bool = True
    rounding: str = "nearest"

    registry: ClassVar[dict[str, type[Quantizer]]] = {}

    def __init_subclass__(cls) -> None:
        Quantizer.registry[cls.__name__] = cls

    def __post_init__(self) -> None:
        IntFormat(self.bits, self.signed)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value).__name__.replace("NoneType", "None") not in str(field.type).split(" | "):
                raise ValueError(f"{type(self).__name__} takes {field.type} as {field.name}, not {value!r}")
        if self.rounding not in ROUNDINGS:
            raise ValueError(
                f"rounding is one of {', '.join(ROUNDINGS)}, not {self.rounding!r}{closest(self.rounding, ROUNDINGS)}"
            )

    @property
    def format(self) -> IntFormat:
        return IntFormat(self.bits, self.signed)

    @property
    def stochastic(self) -> bool:
        return self.rounding == "stochastic"

    def __call__(self, x: Tensor, stream: Tensor | None = None) -> QTensor:
        """Quantize x. stream: int64 scalar tensor (numerics.draw_stream), needed when rounding is stochastic."""
        if self.stochastic and stream is None:
            raise ValueError(
                f"{type(self).__name__} rounds stochastically: it needs a stream (numerics.draw_stream(1)[0])"
            )
        r, shift, max_shift = self.ranges(x.detach())
        codes = ops.quantize(x.detach(), r, shift, stream if self.stochastic else None, self.bits, self.signed)
        return QTensor(codes, step(r, self.format), self.format, shift, max_shift)

    def ranges(self, x: Tensor) -> tuple[Tensor, Tensor | None, int]:
        """(r float32 broadcastable to x, shift uint8 or None, max_shift): everything that the codes depend on."""
        raise NotImplementedError

    def nearest(self) -> Quantizer:
        """The same quantizer without randomness: what a layer in eval mode uses."""
        return dataclasses.replace(self, rounding="nearest")

    def details(self) -> str:
        """What the table of a scheme prints beside bits and rounding."""
        return ""

    def __str__(self) -> str:
        parts = [p for p in (self.details(), "stochastic" if self.stochastic else "") if p]
        return f"{self.format} {type(self).__name__}" + (f"({', '.join(parts)})" if parts else "")


@dataclass(frozen=True)
class AbsMax(Quantizer):
    """One scale for the tensor: s = R / Q.

    >>> AbsMax(4)(torch.tensor([[1.0, -7.0, 2.6]])).codes.tolist()
    [[1, -7, 3]]
    """

    def ranges(self, x: Tensor) -> tuple[Tensor, None, int]:
        return ops.amax(x, ops.WHOLE), None, 0


@dataclass(frozen=True)
class PerChannel(Quantizer):
    """One free scale for each index of an axis: s_k = r_k / Q. With axis 0 on a gradient: PSQ, one for each sample.

    Source: PSQ is from Chen et al., "A statistical framework for low-bitwidth training" (StatQuant), arXiv 2010.14298.
    Along an axis that a product reduces there is no integer product: it is then emulated, and reported as such.
    """

    axis: int = 0

    def ranges(self, x: Tensor) -> tuple[Tensor, None, int]:
        return channel_ranges(x, self.axis), None, 0

    def details(self) -> str:
        return f"axis {self.axis}"


@dataclass(frozen=True)
class ShiftQuant(Quantizer):
    """Groups of channels whose scales differ by powers of two: s_k = (R / Q) 2^-e(k).

    e(k) is the largest exponent of the set with r_k <= R 2^-e(k), by exact comparison; nothing is ever clipped, so
    stochastic rounding is unbiased. The set holds `groups` exponents, the first of them 0:
      exponents = "consecutive"   0, 1, ..., groups - 1
      exponents = "chosen"        for each tensor the subset of 0..max_exponent that minimises the bound
                                  sum_k s_k^2 on the variance, by dynamic programming over octaves
    Channels whose exponents add up to at most 8 - bits of this operand and 8 - bits of the other fold into int8
    (ops.shiftmm): 9 consecutive groups at 4 bits, 5 at 6 bits, cost an integer product nothing.

    Source: Guo et al., "Towards Accurate and Efficient Sub-8-Bit Integer Training", arXiv 2411.10948; the choice of
    exponents is this project's.

    >>> q = ShiftQuant(4, groups=3, rounding="nearest")(torch.tensor([[8.0, 3.0, 0.5]]))
    >>> q.shift.tolist(), q.codes.tolist()
    ([[0, 1, 2]], [[7, 5, 2]])
    """

    groups: int = 4
    exponents: str = "consecutive"
    max_exponent: int | None = None
    axis: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = ("consecutive", "chosen")
        if self.exponents not in kinds:
            raise ValueError(
                f"exponents is one of {', '.join(kinds)}, not {self.exponents!r}{closest(self.exponents, kinds)}"
            )
        if not 1 <= self.groups <= MAX_EXPONENT + 1:
            raise ValueError(f"ShiftQuant takes 1 to {MAX_EXPONENT + 1} groups, not {self.groups}")
        if self.exponents == "consecutive" and self.max_exponent is not None:
            raise ValueError("max_exponent belongs to chosen exponents; consecutive ones end at groups - 1")
        if self.exponents == "chosen" and not self.groups - 1 <= self.max_shift <= MAX_EXPONENT:
            raise ValueError(
                f"max_exponent must be {self.groups - 1}..{MAX_EXPONENT} for {self.groups} groups, not {self.max_shift}"
            )

    @property
    def max_shift(self) -> int:
        """The largest exponent that may occur: a setting, so that widths and bounds are known before any data is."""
        if self.exponents == "consecutive":
            return self.groups - 1
        return self.max_exponent if self.max_exponent is not None else 2 * (8 - self.bits)

    def ranges(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        r_k = channel_ranges(x, self.axis)
        r = r_k.amax(self.axis, keepdim=True) if r_k.numel() else r_k.new_zeros([1] * x.ndim)
        octave = octaves(r_k, r, self.max_shift)
        shift = (
            octave
            if self.exponents == "consecutive"
            else chosen_exponents(octave, r_k > 0, self.groups, self.max_shift)
        )
        return r, shift.to(torch.uint8), self.max_shift

    def details(self) -> str:
        chosen = "" if self.exponents == "consecutive" else f" chosen up to {self.max_shift}"
        axis = "" if self.axis == 1 else f", axis {self.axis}"
        return f"{self.groups} groups{chosen}{axis}"


@dataclass(frozen=True)
class GroupOracle(Quantizer):
    """The upper bound of group quantization: `groups` free scales, thresholds at the exact minimum of sum_k s_k^2.

    Dynamic programming over the sorted r_k, O(groups K^2). Its scales are no powers of two, so its products are
    emulated: it is the yardstick for ShiftQuant, not a way to train fast.
    """

    groups: int = 4
    axis: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups < 1:
            raise ValueError(f"GroupOracle takes 1 group or more, not {self.groups}")

    def ranges(self, x: Tensor) -> tuple[Tensor, None, int]:
        r_k = channel_ranges(x, self.axis)
        return oracle_ranges(r_k.flatten(), self.groups).view_as(r_k), None, 0

    def details(self) -> str:
        return f"{self.groups} free groups" + ("" if self.axis == 1 else f", axis {self.axis}")


# ------------------------------------------------------------------------------------------------ choosing groups


def channel_ranges(x: Tensor, axis: int) -> Tensor:
    """r_k = max |x| for each index k of an axis. ValueError if x has no such axis; a negative one names none."""
    if not 0 <= axis < x.ndim:
        raise ValueError(f"a range for each index of axis {axis} needs a tensor that has it, not {tuple(x.shape)}")
    return ops.amax(x, axis)


def octaves(r_k: Tensor, r: Tensor, top: int) -> Tensor:
    """The largest e in 0..top with r_k <= r 2^-e and r 2^-e >= RANGE_FLOOR, int32: exact comparisons, no logarithm.

    A channel of zeros gets the last one. The floor keeps a channel that counts as zero below its group's range.
    """
    limits = r.flatten() * power_of_two(-torch.arange(1, top + 1, dtype=torch.int32, device=r.device))
    return ((r_k.unsqueeze(-1) <= limits) & (limits >= RANGE_FLOOR)).sum(-1, dtype=torch.int32)


def chosen_exponents(octave: Tensor, counted: Tensor, groups: int, top: int) -> Tensor:
    """Each channel's exponent from the best set {0 = e_0 < e_1 < ...} of `groups` exponents in 0..top.

    Minimises sum over counted channels of 4^-e(k), e(k) the largest exponent of the set that is <= octave(k): dynamic
    programming where f_g(b) = min_a f_(g-1)(a) + cost(a, b), and cost(a, b) = 4^-a #{k: a <= octave(k) < b}.
    """
    levels = torch.arange(top + 1, device=octave.device)
    histogram = (
        (octave.flatten().unsqueeze(0) == levels.unsqueeze(1)).logical_and(counted.flatten().unsqueeze(0)).sum(1)
    )
    below = torch.cat((histogram.new_zeros(1), histogram.cumsum(0))).double()  # channels with octave < b, b = 0..top+1
    cost = (below.unsqueeze(0) - below[:-1].unsqueeze(1)) * 4.0 ** -levels.double().unsqueeze(1)  # (a, b)
    ends = torch.arange(top + 2, device=octave.device)
    cost = torch.where(ends.unsqueeze(0) > levels.unsqueeze(1), cost, torch.inf)
    return _split(cost, octave, groups)


def _split(cost: Tensor, position: Tensor, groups: int) -> Tensor:
    """Cut 0..n-1 into at most `groups` runs of least total cost; returns where the run of each `position` starts.

    cost (n, n + 1): cost[a, b] of the run a..b-1, inf where b <= a. f_g(b) = min_a f_(g-1)(a) + cost(a, b); then the
    choices are walked back from b = n, as tensors: no number leaves the device.
    """
    best, previous = cost[0], []
    for _ in range(groups - 1):
        f, a = (best[:-1].unsqueeze(1) + cost).min(0)
        keep = best <= f  # fewer runs where more do not help
        previous.append(torch.where(keep, torch.full_like(a, -1), a))
        best = torch.where(keep, best, f)
    start = torch.zeros_like(position)
    end = torch.full((1,), cost.shape[0], dtype=torch.int64, device=cost.device)
    for a_of_b in reversed(previous):
        a = a_of_b[end]
        cut = a >= 0
        start = torch.where(cut & (position >= a) & (position < end), a.to(start.dtype), start)
        end = torch.where(cut, a, end)
    return start


def oracle_ranges(r_k: Tensor, groups: int) -> Tensor:
    """The range of each channel's group in the best split of the sorted r_k into `groups` runs. (K) -> (K) float32.

    Minimises sum_k (range of k's group)^2; channels of zeros cost nothing and keep range 0.
    """
    ordered, order = r_k.double().nan_to_num(nan=torch.inf).sort(descending=True)
    k = r_k.numel()
    if k == 0:
        return r_k
    positive = (ordered > 0).double()
    before = torch.cat((positive.new_zeros(1), positive.cumsum(0)))  # counted channels with index < b
    cost = (before.unsqueeze(0) - before[:-1].unsqueeze(1)) * ordered.square().unsqueeze(1)  # (start a, end b)
    at = torch.arange(k + 1, device=r_k.device)
    cost = torch.where(at.unsqueeze(0) > at[:-1].unsqueeze(1), cost, torch.inf)
    start = _split(cost, torch.arange(k, device=r_k.device), groups)
    ranges = torch.where(ordered > 0, ordered[start], 0.0)
    return torch.empty_like(r_k).scatter_(0, order, ranges.to(r_k.dtype).where(ranges.isfinite(), torch.nan))


def variance_bound(q: QTensor) -> Tensor:
    """The bound sum s^2 / 4 on the variance that stochastic rounding adds to the whole tensor, a float64 scalar.

    Each element's variance is s^2 p (1 - p) <= s^2 / 4, s its effective scale.
    """
    return (q.effective_scale().double().square() / 4).expand(q.shape).sum()


# --------------------------------------------------------------------------------------------------- serialisation


def to_dict(q: Quantizer | None) -> dict[str, Any] | None:
    """A quantizer as plain data, {"type": name, field: value, ...}; None stays None."""
    return None if q is None else {"type": type(q).__name__, **dataclasses.asdict(q)}


def from_dict(d: dict[str, Any] | None) -> Quantizer | None:
    """The inverse of to_dict. ValueError for an unknown type or field, with the closest name that exists."""
    if d is None:
        return None
    fields = dict(d)
    name = fields.pop("type", None)
    if name not in Quantizer.registry:
        known = sorted(Quantizer.registry)
        raise ValueError(f"unknown quantizer {name!r}{closest(str(name), known)}; there are: {', '.join(known)}")
    cls = Quantizer.registry[name]
    reject_unknown(fields, [f.name for f in dataclasses.fields(cls)], name)
    return cls(**fields)


def reject_unknown(given: Any, known: list[str], what: str) -> None:
    """ValueError for a key that `what` does not have, with the closest that it has."""
    for key in given:
        if key not in known:
            raise ValueError(f"{what} has no field {key!r}{closest(key, known)}; it has: {', '.join(known)}")


def closest(word: object, known: Any) -> str:
    """' (did you mean ...?)' or nothing."""
    match = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
