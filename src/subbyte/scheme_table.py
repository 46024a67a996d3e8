"""A scheme as a table: every bit in it, for people. Schemes themselves are in scheme.py."""

from __future__ import annotations

from typing import Any

from .quantizers import Quantizer

Row = tuple[str, str, str, str, str]


def rows(scheme: Any) -> list[Row]:
    """(where, tensor, format, rounding, scale) for every tensor that a Scheme quantizes."""
    out: list[Row] = []
    parts = [("first layer", scheme.first), ("layers", scheme.layer), ("last layer", scheme.last)]
    parts += [(f"override {p}", s) for p, s in scheme.overrides if not hasattr(s, "granularity")]
    for where, layer in parts:
        if layer is None:
            if where.startswith("override"):
                out.append((where, "all", "float", "", ""))
            continue
        for role in ("weight", "activation", "gradient"):
            described = _describe(getattr(layer, role), behind_relu=role == "activation")
            if role == "gradient" and layer.gradient_samples > 1:
                described = (*described[:2], f"{described[2]}, {layer.gradient_samples} samples")
            out.append((where, role, *described))
    norms = [("norms", scheme.norm), *((f"override {p}", s) for p, s in scheme.overrides if hasattr(s, "granularity"))]
    for where, norm in norms:
        scale = "finest that the sums allow" if norm.granularity == "channel" else "one for the tensor"
        clip, groups = f", clip {norm.clip:g}" * (norm.clip < 1), f"{norm.groups} groups of tokens"
        for label, bits, rounding, how in (
            ("input", norm.input, "nearest", scale + clip),
            ("normalized", norm.normalized, "nearest", scale),
            ("saved", norm.saved, "nearest", scale),
            ("weight", norm.weight, "nearest", "AbsMax"),
            ("gradient", norm.gradient, "stochastic", groups if norm.groups > 1 else scale),
        ):
            out.append((where, f"{norm.kind} {label}", "float" if bits is None else f"s{bits}", rounding, how))
    if scheme.integer_only:
        out.append(("everywhere", "between layers", "int32", "nearest", "2^e, one for the tensor"))
        out.append(("everywhere", "scales", "2^e", "up", "powers of two: a change of scale is a shift"))
    return [(*r[:3], "", "") if r[2] == "float" else r for r in out]


def table(scheme: Any):
    """The rows as a rich Table."""
    from rich.table import Table
    from rich.text import Text

    found = Table(title=f"scheme {scheme.name}")
    for column in ("where", "tensor", "format", "rounding", "scale"):
        found.add_column(column, overflow="fold")
    for row in rows(scheme):
        found.add_row(*(Text(cell) for cell in row))  # a pattern may look like markup
    return found


def _describe(q: Quantizer | None, behind_relu: bool = False) -> tuple[str, str, str]:
    """(format, rounding, scale); an activation's sign is settled at conversion, by the module that produces it."""
    if q is None:
        return "float", "", ""
    unsigned = f", u{q.bits} behind a ReLU" if behind_relu and q.signed else ""
    detail = f" ({q.details()})" if q.details() else ""
    return f"{q.format}{unsigned}", q.rounding, f"{type(q).__name__}{detail}"
