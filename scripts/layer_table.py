"""Write docs/layers_table.md: every layer x every quantizer in each role x bits, by running each of them once.

    python scripts/layer_table.py          write the table
    python scripts/layer_table.py --check  exit 1 if the table in docs/ is not what the layers do

A cell says which of the products output, grad_input, grad_weight ran on integers (i) or were emulated on dequantized
values (e), in that order; - is a product that the layer does not have. tests/test_layers_all_docs.py runs the check.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import subbyte as sb
from subbyte import LayerScheme, NormScheme
from subbyte.quantizers import (
    SAWB,
    AbsMax,
    BlockHouseholder,
    GroupOracle,
    LearnedStep,
    LogUnbiased,
    MSEClip,
    MXInt,
    PerChannel,
    Quantizer,
    ShiftQuant,
    ZeroPoint,
)

PAGE = Path(__file__).parents[1] / "docs" / "layers_table.md"
BITS = (2, 4, 6, 8)
BITS_TEXT = ", ".join(map(str, BITS))
ROLES = ("weight", "activation", "gradient")
PRODUCTS = ("output", "grad_input", "grad_weight")
PARTS = ("pair_", "key_", "value_")
QUANTIZERS: dict[str, tuple[type[Quantizer], dict]] = {
    "AbsMax": (AbsMax, {}),
    "PerChannel(0)": (PerChannel, {"axis": 0}),
    "PerChannel(1)": (PerChannel, {"axis": 1}),
    "ShiftQuant": (ShiftQuant, {"groups": 3}),
    "GroupOracle": (GroupOracle, {"groups": 2}),
}
COMPARISON: dict[str, tuple[type[Quantizer], dict]] = {
    "SAWB": (SAWB, {}),
    "MSEClip": (MSEClip, {}),
    "LearnedStep": (LearnedStep, {}),
    "LogUnbiased": (LogUnbiased, {}),
    "BlockHouseholder": (BlockHouseholder, {}),
    "MXInt": (MXInt, {"block": 2}),
    "ZeroPoint": (ZeroPoint, {}),
}
COMPARISON_BITS = (2, 4, 6)


@dataclass(frozen=True)
class Row:
    """A layer of this package, its arguments and the shapes of its inputs; an int stands for that many indices."""

    layer: str
    label: str
    args: tuple
    inputs: tuple
    kwargs: tuple = ()

    def build(self, scheme: LayerScheme | NormScheme) -> torch.nn.Module:
        torch.manual_seed(0)
        return getattr(sb.nn, self.layer)(*self.args, scheme=scheme, **dict(self.kwargs))

    def step(self, layer: torch.nn.Module) -> dict[str, str]:
        """One forward and backward; the record of what ran."""
        torch.manual_seed(1)
        values = [
            torch.randint(0, 5, (v,)) if isinstance(v, int) else torch.randn(v, requires_grad=True) for v in self.inputs
        ]
        if self.layer == "EmbeddingBag":
            values = [values[0].view(2, -1)]
        y = layer(*values)
        y = y[0] if isinstance(y, tuple) else y
        y.backward(torch.randn(y.shape))
        return layer.record.kernels


def _conv(name: str, spatial: tuple) -> list[Row]:
    forms = (
        ("", (4, 8, 3), ()),
        (", groups", (4, 8, 3), (("groups", 2),)),
        (", depthwise", (4, 4, 3), (("groups", 4),)),
    )
    return [Row(name, name + label, args, ((2, 4, *spatial),), kwargs) for label, args, kwargs in forms]


PRODUCT_ROWS = [
    Row("Linear", "Linear", (6, 5), ((7, 6),)),
    Row("LoRALinear", "LoRALinear (base)", (6, 5), ((7, 6),), (("rank", 2),)),
    Row("Bilinear", "Bilinear", (4, 5, 3), ((6, 4), (6, 5))),
    Row("MultiheadAttention", "MultiheadAttention", (4, 2), ((5, 2, 4), (6, 2, 4), (6, 2, 4))),
    Row("OutProjection", "OutProjection", (6, 5), ((7, 6),)),
    *_conv("Conv1d", (7,)),
    *_conv("Conv2d", (5, 6)),
    *_conv("Conv3d", (4, 4, 4)),
    *_conv("ConvTranspose1d", (7,)),
    *_conv("ConvTranspose2d", (5, 6)),
    *_conv("ConvTranspose3d", (3, 3, 3)),
    Row("Embedding", "Embedding", (5, 4), (8,)),
    *(Row("EmbeddingBag", f"EmbeddingBag, {m}", (5, 4), (8,), (("mode", m),)) for m in ("sum", "mean", "max")),
]

NORM_ROWS = [
    Row("BatchNorm1d", "BatchNorm1d", (4,), ((5, 4, 6),)),
    Row("BatchNorm2d", "BatchNorm2d", (4,), ((3, 4, 5, 5),)),
    Row("BatchNorm3d", "BatchNorm3d", (4,), ((2, 4, 3, 3, 3),)),
    Row("LayerNorm", "LayerNorm", (6,), ((5, 6),)),
    Row("RMSNorm", "RMSNorm", (6,), ((5, 6),)),
    Row("GroupNorm", "GroupNorm", (2, 4), ((3, 4, 5),)),
    *(Row(f"InstanceNorm{n}d", f"InstanceNorm{n}d", (4,), ((3, 4, *[3] * n),), (("affine", True),)) for n in (1, 2, 3)),
]
FORMS = {"integer": "i", "emulated": "e", "float": "f"}


def cell(row: Row, quantizer: type[Quantizer], options: dict, role: str, widths: tuple[int, ...] = BITS) -> str:
    """What ran, for every number of bits; the bits are named only where they differ."""
    by_bits = {}
    for bits in widths:
        roles = dict.fromkeys(ROLES, AbsMax(bits)) | {role: quantizer(bits, **options)}
        ran = row.step(row.build(LayerScheme(**roles)))
        by_bits[bits] = "".join(FORMS.get(ran.get(p, ""), "-") for p in PRODUCTS)
        for part in PARTS:
            more = [FORMS[ran[f"{part}{p}"]] for p in PRODUCTS if f"{part}{p}" in ran]
            by_bits[bits] += f" {''.join(more)}" if more else ""
    if len(set(by_bits.values())) == 1:
        return by_bits[widths[0]]
    return ", ".join(f"{bits}: {what}" for bits, what in by_bits.items())


def comparison_cell(row: Row, quantizer: type[Quantizer], options: dict) -> str:
    """The cells of the three roles; a layer may refuse a quantizer (adapters need a base of codes)."""
    cells = []
    for role in ROLES:
        try:
            cells.append(cell(row, quantizer, options, role, COMPARISON_BITS))
        except ValueError:
            cells.append("refused")
    return " / ".join(cells)


def norm_cell(row: Row, kind: str, granularity: str) -> str:
    """The bits with which all sums and passes ran on codes."""
    done = []
    for bits in BITS:
        scheme = NormScheme(kind, bits, bits, bits, bits, bits, granularity)
        ran = row.step(row.build(scheme))
        if {"norm_forward", "norm_backward"} <= set(ran):
            done.append(str(bits))
    return ", ".join(done)


def page() -> str:
    """The whole page."""
    lines = [
        "# Layers x bits x quantizers",
        "",
        "Written by `python scripts/layer_table.py`, which runs every cell; a test fails when this is out of date.",
        "",
        f"The quantizer of a column takes the role named under it, AbsMax the other two, at {BITS_TEXT} bits each",
        "(a cell names the bits where they made a difference). Three letters for output, grad_input, grad_weight: i is",
        "on integers, e emulated (a float product of dequantized operands; `report` says so), - where there is none.",
        "Bilinear has a second product, of its two inputs: three more letters. Of MultiheadAttention, here with",
        "three inputs, those are the projections of query, key and value; OutProjection is the fourth.",
        "",
        "| layer | " + " | ".join(f"{q}<br>{r}" for q in QUANTIZERS for r in ROLES) + " |",
        "|---" * (1 + len(QUANTIZERS) * len(ROLES)) + "|",
    ]
    for row in PRODUCT_ROWS:
        cells = [cell(row, *QUANTIZERS[q], role) for q in QUANTIZERS for role in ROLES]
        lines.append(f"| {row.label} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "The quantizers for comparison, as weight / activation / gradient, at "
        f"{', '.join(map(str, COMPARISON_BITS))} bits each (LogUnbiased has no more; the others take 8, too):",
        "",
        "| layer | " + " | ".join(COMPARISON) + " |",
        "|---" * (1 + len(COMPARISON)) + "|",
    ]
    for row in PRODUCT_ROWS:
        cells = [comparison_cell(row, *COMPARISON[q]) for q in COMPARISON]
        lines.append(f"| {row.label} | " + " | ".join(cells) + " |")
    columns = [(kind, granularity) for kind in ("l1", "l2") for granularity in ("channel", "tensor")]
    lines += [
        "",
        "Norms: the bits at which every sum and pass, forward and backward, ran on codes.",
        "",
        "| layer | " + " | ".join(f"{k}, {g}" for k, g in columns) + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for row in NORM_ROWS:
        lines.append(f"| {row.label} | " + " | ".join(norm_cell(row, *c) for c in columns) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    text = page()
    if "--check" in sys.argv:
        return 0 if PAGE.exists() and PAGE.read_text() == text else 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
