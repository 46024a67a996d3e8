"""Quantizer: what all of them share, the registry behind their JSON form, and the range of a channel."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .. import ops
from ..numerics import IntFormat, step
from ..qtensor import Emulated, QTensor
from ..wording import closest, unknown

ROUNDINGS = ("nearest", "stochastic")
"""Half to even; or up with the probability of what is cut off, so that E[code] is exact."""


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
        """The integers that its codes are."""
        return IntFormat(self.bits, self.signed)

    @property
    def stochastic(self) -> bool:
        """Does it draw random numbers, and so need a stream?"""
        return self.rounding == "stochastic"

    def __call__(self, x: Tensor, stream: Tensor | None = None) -> Any:
        """Quantize x. stream: int64 scalar tensor (numerics.draw_stream), needed when rounding is stochastic.

        A QTensor, or an Emulated from a quantizer whose values are not codes * scale * 2^-shift.
        """
        if self.stochastic and stream is None:
            raise ValueError(
                f"{type(self).__name__} rounds stochastically: it needs a stream (numerics.draw_stream(1)[0])"
            )
        return self.represent(x.detach(), stream if self.stochastic else None)

    def represent(self, x: Tensor, stream: Tensor | None) -> QTensor | Emulated:
        """x as codes on the grid that ranges() spans. stream: None rounds to nearest."""
        r, shift, max_shift = self.ranges(x)
        codes = ops.quantize(x, r, shift, stream, self.format.bits, self.format.signed)
        return QTensor(codes, step(r, self.format), self.format, shift, max_shift)

    def ranges(self, x: Tensor) -> tuple[Tensor, Tensor | None, int]:
        """(r float32 broadcastable to x, shift uint8 or None, max_shift): everything that the codes depend on."""
        raise NotImplementedError

    @property
    def range_axis(self) -> int | None:
        """The axis (or ops.WHOLE) for which ranges(x) = ranges_of(amax(x, axis)); None if it must see more of x.

        A fused chain knows these maxima before there is an x.
        """
        return None

    def ranges_of(self, r_k: Tensor) -> tuple[Tensor, Tensor | None, int]:
        """ranges(x) from r_k = amax(x, range_axis), float32 and of x's rank."""
        raise NotImplementedError(f"{type(self).__name__} must see more of a tensor than maxima along an axis")

    @property
    def shifts(self) -> bool:
        """Do its codes come with a shift?"""
        return False

    def groups_used(self, x: Tensor, q: QTensor) -> int:
        """How many different exponents the codes q of x have; 1 without a shift."""
        return 1 if q.shift is None else len(q.shift.unique())

    def initial_state(self) -> Tensor | None:
        """The buffer that a layer keeps for this quantizer, before any data; None for one without memory."""
        return None

    @property
    def learns(self) -> bool:
        """Does backward() want to see the gradient? Only a quantizer bound to a state says yes."""
        return False

    def bind(self, state: Tensor, training: bool) -> Quantizer:
        """The same quantizer at work on a layer's state, which it may change in place where training."""
        return self

    def backward(self, x: Tensor, scale: Tensor, grad: Tensor) -> Tensor:
        """The gradient of x from that of its dequantized value; scale: as it was in forward. May change the state."""
        return grad

    def nearest(self) -> Quantizer:
        """The same quantizer without randomness: what a layer in eval mode uses."""
        return dataclasses.replace(self, rounding="nearest")

    def details(self) -> str:
        """What the table of a scheme prints beside bits and rounding."""
        return ""

    def __str__(self) -> str:
        parts = [p for p in (self.details(), "stochastic" if self.stochastic else "") if p]
        return f"{self.format} {type(self).__name__}" + (f"({', '.join(parts)})" if parts else "")


def check_clip(clip: float) -> None:
    """ValueError unless 0 < clip <= 1."""
    if not 0 < clip <= 1:
        raise ValueError(f"clip is a share of the largest magnitude, above 0 and at most 1, not {clip}")


def and_clip(details: str, clip: float) -> str:
    """Details of a quantizer, and its clip where it has one."""
    return ", ".join(part for part in (details, "" if clip == 1 else f"clip {clip:g}") if part)


def axis_of_ranges(axis: int) -> int | None:
    """The range_axis of a quantizer with ranges along `axis`: a negative one names no axis, and is not ops.WHOLE."""
    return axis if axis >= 0 else None


def channel_ranges(x: Tensor, axis: int) -> Tensor:
    """r_k = max |x| for each index k of an axis. ValueError if x has no such axis; a negative one names none."""
    if not 0 <= axis < x.ndim:
        raise ValueError(f"a range for each index of axis {axis} needs a tensor that has it, not {tuple(x.shape)}")
    return ops.amax(x, axis)


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
        raise ValueError(unknown("quantizer", name, known))
    cls = Quantizer.registry[name]
    reject_unknown(fields, [f.name for f in dataclasses.fields(cls)], name)
    return cls(**fields)


def reject_unknown(given: Any, known: list[str], what: str) -> None:
    """ValueError for a key that `what` does not have, with the closest that it has."""
    for key in given:
        if key not in known:
            raise ValueError(f"{what} has no field {key!r}{closest(key, known)}; it has: {', '.join(known)}")
