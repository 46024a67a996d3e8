"""Scheme: which quantizer plays which role, in which layer. Named recipes, overrides by module name, JSON.

A number format or a rounding mode is never a flag here: it is a quantizer. None in a role leaves it in floats.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
from dataclasses import dataclass, field
from typing import Any

from . import quantizers, scheme_table
from .numerics import IntFormat
from .quantizers import AbsMax, BlockShiftQuant, Quantizer, ShiftQuant, TokenShiftQuant, reject_unknown
from .wording import closest, unknown

VERSION = 1
"""Of the JSON form. A file with a higher one is refused."""

_KEYS = ["version", "name", "layer", "norm", "first", "last", "overrides", "integer_only"]

NORM_KINDS = ("l1", "l2")
GRANULARITIES = ("channel", "tensor")


@dataclass(frozen=True)
class LayerScheme:
    """The three operands of a layer with a weight: output = x w, grad_input = g w, grad_weight = g x.

    gradient_samples  how often g is quantized, each time by other random numbers: grad_weight (and a bias's gradient)
                      is the mean over all samples, grad_input takes the first. 2 is SMP of LUQ, arXiv 2112.10769.
    """

    weight: Quantizer | None = None
    activation: Quantizer | None = None
    gradient: Quantizer | None = None
    gradient_samples: int = 1

    def __post_init__(self) -> None:
        for role in ("weight", "activation", "gradient"):
            q = getattr(self, role)
            if not (q is None or isinstance(q, Quantizer)):
                raise TypeError(f"{role} takes a quantizer such as AbsMax(8), or None for floats, not {q!r}")
        n = self.gradient_samples
        if type(n) is not int or n < 1:
            raise ValueError(f"gradient_samples is 1 or more, not {n!r}")
        if n > 1 and (self.gradient is None or not self.gradient.stochastic):
            raise ValueError(f"{n} gradient samples need a gradient that rounds stochastically, not {self.gradient}")

    @property
    def is_float(self) -> bool:
        """No operand is quantized."""
        return self.weight is None and self.activation is None and self.gradient is None

    @property
    def stochastic(self) -> bool:
        """Does any role draw random numbers?"""
        return any(q is not None and q.stochastic for q in (self.weight, self.activation, self.gradient))

    def deterministic_forward(self) -> LayerScheme:
        """The same with nothing random in the forward product: what a layer in eval mode uses."""
        if not any(q is not None and q.stochastic for q in (self.weight, self.activation)):
            return self
        w, x = (None if q is None else q.nearest() for q in (self.weight, self.activation))
        return dataclasses.replace(self, weight=w, activation=x)

    def unsigned_activation(self) -> LayerScheme:
        """The same with activations in 0..2^b - 1: for a layer whose producer cannot be negative."""
        if self.activation is None:
            return self
        return dataclasses.replace(self, activation=dataclasses.replace(self.activation, signed=False))

    def __str__(self) -> str:
        roles = (("w", self.weight), ("x", self.activation), ("g", self.gradient))
        samples = f" x {self.gradient_samples} samples" if self.gradient_samples > 1 else ""
        return ", ".join(f"{n}={'float' if q is None else q}" for n, q in roles) + samples


@dataclass(frozen=True)
class NormScheme:
    """A normalization layer: which statistic, and the bits of each tensor that travels as codes. None: float.

    kind         l1: sigma = sqrt(pi/2) mean |x - mu|; l2: the standard deviation
    input        x, as it enters (nearest)
    normalized   xhat in the forward pass (nearest)
    saved        xhat as kept for backward: normalized, narrowed
    weight       gamma (nearest, one scale)
    gradient     the gradient of the output (stochastic)
    granularity  channel: the finest scale that its sums allow; tensor: one scale
    clip         the share of x's range that its codes have steps for; what lies beyond gets the last one, and so xhat
    groups       of tokens, for the gradient: with more than 1 it is TokenShiftQuant's, and has one scale
    """

    kind: str = "l1"
    input: int | None = 8
    normalized: int | None = 8
    saved: int | None = 6
    weight: int | None = 8
    gradient: int | None = 8
    granularity: str = "channel"
    clip: float = 1.0
    groups: int = 1

    def __post_init__(self) -> None:
        if self.kind not in NORM_KINDS:
            raise ValueError(
                f"norm is one of {', '.join(NORM_KINDS)}, not {self.kind!r}{closest(str(self.kind), NORM_KINDS)}"
            )
        if self.granularity not in GRANULARITIES:
            raise ValueError(
                f"granularity is one of {', '.join(GRANULARITIES)}, not {self.granularity!r}"
                f"{closest(str(self.granularity), GRANULARITIES)}"
            )
        bits = (self.input, self.normalized, self.saved, self.weight, self.gradient)
        if None in bits and set(bits) != {None}:
            raise ValueError("the bits of a norm are all numbers or all None (float): its sums mix every one of them")
        for b in bits:
            if b is not None:
                IntFormat(b)
        if self.saved is not None and self.normalized is not None and self.saved > self.normalized:
            raise ValueError(f"saved ({self.saved} bits) cannot exceed normalized ({self.normalized} bits)")
        if self.input is not None and self.gradient is not None:  # these say what is wrong
            AbsMax(self.input, clip=self.clip), TokenShiftQuant(self.gradient, groups=self.groups)
        elif (self.clip, self.groups) != (1, 1):
            raise ValueError(f"a float norm has no codes that a clip of {self.clip} or {self.groups} groups are for")

    @property
    def is_float(self) -> bool:
        """Nothing is quantized."""
        return self.input is None

    def format(self, tensor: str) -> IntFormat:
        """The format of "input", "normalized", "saved", "weight" or "gradient"."""
        return IntFormat(getattr(self, tensor))

    def quantizer(self, tensor: str, axis: int | None, rounding: str = "nearest") -> Quantizer:
        """The quantizer of one of its tensors; axis: where a finer scale is allowed, None if nowhere."""
        if tensor == "gradient" and self.groups > 1:
            return TokenShiftQuant(self.format(tensor).bits, rounding=rounding, groups=self.groups)
        axis, clip = None if self.granularity == "tensor" else axis, self.clip if tensor == "input" else 1.0
        return quantizers.by_axis(getattr(self, tensor), axis, rounding, clip)

    def __str__(self) -> str:
        if self.is_float:
            return f"{self.kind} float"
        xhat = f"s{self.normalized}/s{self.saved} saved"
        clip, groups = f" clip {self.clip:g}" * (self.clip < 1), f" {self.groups} groups of tokens" * (self.groups > 1)
        return f"{self.kind} x=s{self.input}{clip}, xhat={xhat}, w=s{self.weight}, g=s{self.gradient}{groups}"


@dataclass(frozen=True)
class Scheme:
    """A recipe for a whole model.

    layer, norm   what layers with a weight, and norms, get
    first, last   the first and the last layer with a weight, in the order of model.modules(); None: as `layer`
    integer_only  run the whole model as an integer-only network (subbyte.integer_only): every scale a power of two, no
                  float arithmetic between the input and the logits, nor between their gradient and the Parameters'
    overrides     (pattern, LayerScheme | NormScheme | None) pairs, the first match wins over all of the above. A
                  pattern is a glob over module names, or a regular expression behind "re:"; None leaves it float.

    >>> Scheme.from_name("int4").layer.gradient.bits
    4
    >>> Scheme.from_json(Scheme.from_name("int6").to_json()) == Scheme.from_name("int6")
    True
    """

    name: str = "custom"
    layer: LayerScheme = field(default_factory=LayerScheme)
    norm: NormScheme = field(default_factory=NormScheme)
    first: LayerScheme | None = None
    last: LayerScheme | None = None
    overrides: tuple[tuple[str, LayerScheme | NormScheme | None], ...] = ()
    integer_only: bool = False

    def __post_init__(self) -> None:
        for pattern, scheme in self.overrides:
            _compile(pattern)  # here, and not when half of a model is converted
            if not (scheme is None or isinstance(scheme, (LayerScheme, NormScheme))):
                raise TypeError(f"override {pattern!r} takes a LayerScheme, a NormScheme or None, not {scheme!r}")

    # ------------------------------------------------------------------------------------------------- recipes

    @staticmethod
    def names() -> tuple[str, ...]:
        """The named recipes."""
        return tuple(RECIPES)

    @staticmethod
    def from_name(name: str) -> Scheme:
        """A named recipe. ValueError with the closest name for an unknown one."""
        if name not in RECIPES:
            raise ValueError(unknown("scheme", name, RECIPES))
        return RECIPES[name]

    @property
    def is_float(self) -> bool:
        """Nothing is quantized anywhere."""
        parts = [self.layer, self.norm, self.first, self.last, *(s for _, s in self.overrides)]
        return all(p is None or p.is_float for p in parts)

    @property
    def is_torch(self) -> bool:
        """Every layer computes what torch's does: nothing is quantized, and no norm takes L1 statistics."""
        norms = [self.norm, *(s for _, s in self.overrides if isinstance(s, NormScheme))]
        return self.is_float and all(norm.kind == "l2" for norm in norms)

    def override(self, pattern: str, scheme: LayerScheme | NormScheme | None) -> Scheme:
        """The same scheme with one more override, which goes before the others."""
        return dataclasses.replace(self, overrides=((pattern, scheme), *self.overrides))

    def for_layer(self, name: str, position: str = "") -> LayerScheme | None:
        """What the layer with a weight of that name gets; position: "first", "last" or "". None: leave it alone."""
        found, scheme = self._overridden(name, LayerScheme)
        if found:
            return scheme
        edge = {"first": self.first, "last": self.last}.get(position)
        return edge if edge is not None else self.layer

    def for_norm(self, name: str) -> NormScheme | None:
        """What the norm of that name gets. None: leave it alone."""
        found, scheme = self._overridden(name, NormScheme)
        return scheme if found else self.norm

    def _overridden(self, name: str, kind: type) -> tuple[bool, Any]:
        for pattern, scheme in self.overrides:
            if (scheme is None or isinstance(scheme, kind)) and _compile(pattern)(name):
                return True, scheme
        return False, None

    # ------------------------------------------------------------------------------------------------------ JSON

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the version of the format."""
        return {
            "version": VERSION,
            "name": self.name,
            "layer": _layer_to_dict(self.layer),
            "norm": dataclasses.asdict(self.norm),
            "first": None if self.first is None else _layer_to_dict(self.first),
            "last": None if self.last is None else _layer_to_dict(self.last),
            "overrides": [{"pattern": p, **_override_to_dict(s)} for p, s in self.overrides],
            **({"integer_only": True} if self.integer_only else {}),
        }

    @staticmethod
    def from_dict(d: dict[str, Any]) -> Scheme:
        """The inverse of to_dict. ValueError for unknown keys, unknown quantizers and newer versions."""
        _fields_of(d, _KEYS, "a scheme")
        version = d.get("version")
        if type(version) is not int or not 1 <= version <= VERSION:
            raise ValueError(f"this scheme has version {version}; this release reads versions up to {VERSION}")
        return Scheme(
            name=d.get("name", "custom"),
            layer=_layer_from_dict(d.get("layer", {})),
            norm=_norm_from_dict(d.get("norm", {})),
            first=None if d.get("first") is None else _layer_from_dict(d["first"]),
            last=None if d.get("last") is None else _layer_from_dict(d["last"]),
            overrides=tuple(_override_from_dict(o) for o in d.get("overrides", [])),
            integer_only=d.get("integer_only", False),
        )

    def to_json(self) -> str:
        """to_dict as indented JSON, with a version in it."""
        return json.dumps(self.to_dict(), indent=2)

    @staticmethod
    def from_json(text: str) -> Scheme:
        """The inverse of to_json. ValueError with the place for malformed JSON."""
        try:
            return Scheme.from_dict(json.loads(text))
        except json.JSONDecodeError as e:
            raise ValueError(f"a scheme must be JSON: {e}") from e

    # ------------------------------------------------------------------------------------------------------ table

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """(where, tensor, format, rounding, scale) for every tensor that the scheme quantizes: every bit in it."""
        return scheme_table.rows(self)

    def table(self):
        """rows() as a rich Table."""
        return scheme_table.table(self)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=100, no_color=True)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get().rstrip()


def _compile(pattern: str):
    if pattern.startswith("re:"):
        try:
            return re.compile(pattern[3:]).fullmatch
        except re.error as e:
            raise ValueError(f"override pattern {pattern!r} is no regular expression: {e}") from e
    return lambda name: fnmatch.fnmatchcase(name, pattern)


def _layer_to_dict(s: LayerScheme) -> dict[str, Any]:
    roles = {role: quantizers.to_dict(getattr(s, role)) for role in ("weight", "activation", "gradient")}
    return roles if s.gradient_samples == 1 else {**roles, "gradient_samples": s.gradient_samples}


def _fields_of(d: Any, known: list[str], what: str) -> dict[str, Any]:
    """d itself, if it is an object with known fields only."""
    if not isinstance(d, dict):
        raise ValueError(f"{what} is a JSON object, not {d!r}")
    reject_unknown(d, known, what)
    return d


def _layer_from_dict(d: dict[str, Any]) -> LayerScheme:
    _fields_of(d, [f.name for f in dataclasses.fields(LayerScheme)], "a layer's scheme")
    roles = {role: q for role, q in d.items() if role != "gradient_samples"}
    for role, q in roles.items():
        if not (q is None or isinstance(q, dict)):
            raise ValueError(f'{role} is an object such as {{"type": "AbsMax", "bits": 8}}, or null, not {q!r}')
    samples = d.get("gradient_samples", 1)
    return LayerScheme(**{role: quantizers.from_dict(q) for role, q in roles.items()}, gradient_samples=samples)


def _norm_from_dict(d: dict[str, Any]) -> NormScheme:
    _fields_of(d, [f.name for f in dataclasses.fields(NormScheme)], "a norm's scheme")
    return NormScheme(**d)


def _override_to_dict(s: LayerScheme | NormScheme | None) -> dict[str, Any]:
    if s is None:
        return {"float": True}
    return {"norm": dataclasses.asdict(s)} if isinstance(s, NormScheme) else {"layer": _layer_to_dict(s)}


def _override_from_dict(o: dict[str, Any]) -> tuple[str, LayerScheme | NormScheme | None]:
    _fields_of(o, ["pattern", "layer", "norm", "float"], "an override")
    kinds = [k for k in ("layer", "norm", "float") if k in o]
    if not isinstance(o.get("pattern"), str) or len(kinds) != 1:
        raise ValueError(f"an override has a pattern and one of layer, norm, float, not {sorted(o)}")
    if "norm" in o:
        return o["pattern"], _norm_from_dict(o["norm"])
    return o["pattern"], _layer_from_dict(o["layer"]) if "layer" in o else None


_EDGE = LayerScheme(AbsMax(8), AbsMax(8), ShiftQuant(8, rounding="stochastic", groups=4))
_WIDE_EDGE = LayerScheme(ShiftQuant(8, groups=13, axis=0), AbsMax(8), ShiftQuant(8, rounding="stochastic", groups=13))


def _recipe(name: str, w: Quantizer, x: Quantizer, g: Quantizer, saved: int, edge: LayerScheme = _EDGE) -> Scheme:
    """Middle layers by w, x, g; norms in 8-bit codes, `saved` bits of them kept; first and last layer by `edge`."""
    return Scheme(name, LayerScheme(w, x, g), NormScheme("l1", saved=saved), first=edge, last=edge)


_FLOAT_NORM = NormScheme("l2", input=None, normalized=None, saved=None, weight=None, gradient=None)

RECIPES: dict[str, Scheme] = {
    "float": Scheme("float", LayerScheme(), _FLOAT_NORM),
    "int8": _recipe("int8", AbsMax(8), AbsMax(8), ShiftQuant(8, rounding="stochastic", groups=4), saved=8),
    # gradients by groups of tokens, as many as fold into int8 operands: recipes/helps.py and docs/method.md say why
    "int6": _recipe("int6", AbsMax(6), AbsMax(6), TokenShiftQuant(6, rounding="stochastic", groups=3), saved=6),
    # Of 16 levels too few lie where values are: powers of two for short blocks of weights and for the tokens of an
    # activation, inside of the codes, halve the error of both, and any product takes them.
    "int4": _recipe(
        "int4",
        BlockShiftQuant(4, groups=3, block=8),
        TokenShiftQuant(4, groups=2, clip=0.6),
        TokenShiftQuant(4, rounding="stochastic", groups=5),
        saved=6,
    ),
    # for nets whose channels lie up to 12 octaves apart: each has an exponent, in weights and in gradients
    "int4-wide": _recipe(
        "int4-wide",
        BlockShiftQuant(4, groups=3, block=8, channel_groups=13, channels_apart=4),
        TokenShiftQuant(4, groups=2, clip=0.6),
        TokenShiftQuant(4, rounding="stochastic", groups=5, channel_groups=13, channels_apart=4),
        saved=6,
        edge=_WIDE_EDGE,
    ),
}
# int4 without a float scale: where activations are clipped, the layer finds itself. A norm's table of its input's codes
# gives xhat once more, so that nothing narrower is kept for backward.
RECIPES["int4-integer-only"] = dataclasses.replace(
    _recipe(
        "int4-integer-only",
        BlockShiftQuant(4, groups=3, block=8),
        TokenShiftQuant(4, groups=3),
        TokenShiftQuant(4, rounding="stochastic", groups=5),
        saved=8,
    ),
    integer_only=True,
)
