"""bits: accuracy by bits of weights, activations and gradients, 2 to 8, one at a time and together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from subbyte.quantizers import AbsMax, ShiftQuant
from subbyte.scheme import LayerScheme, Scheme
from subbyte.study import Row, Run, Study, training
from subbyte.study.plots import by_number, plot_lines
from subbyte.study.select import where


@dataclass(frozen=True)
class Config:
    """What isn't varied has 8 bits, as the first and the last layer and the norms have: all products are integers'."""

    task: str = "cifar10"
    model: str = "resnet8"
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 3
    batch_size: int = 128
    lr: float = 0.1
    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)


EXPECTED = ()
"""None: the issue is the curve."""

REST = 8
ROLES = ("w", "a", "g")


def scheme(w: int, a: int, g: int) -> Scheme:
    """Bits of weights, activations, gradients. Groups: those that fold into int8, and at least 4."""
    groups = min(max((8 - w) + (8 - g) + 1, 4), 9)
    layer = LayerScheme(AbsMax(w), AbsMax(a), ShiftQuant(g, rounding="stochastic", groups=groups))
    return dataclasses.replace(Scheme.from_name("int8"), name=f"w{w}a{a}g{g}", layer=layer)


def runs(config: Config) -> Iterator[Run]:
    """float, 8 bits throughout, then each role by itself and all together."""
    settings = dict(model=config.model, epochs=config.epochs, batch_size=config.batch_size, lr=config.lr)
    for seed in config.seeds:
        yield Run("float", training(config.task, "float", seed, **settings))
        wanted: list[tuple[int, ...]] = [(REST, REST, REST)] if REST in config.bits else []
        for bits in sorted(set(config.bits) - {REST}):  # fewest first: there is most to see
            wanted += [tuple(bits if r == role else REST for r in ROLES) for role in ROLES]
            wanted.append((bits, bits, bits))
        for each in wanted:
            named = scheme(*each)
            varied = {f"bits_{role}": bits for role, bits in zip(ROLES, each)}
            yield Run(named.name, training(config.task, named, seed, **settings), settings=varied)


def plots(rows: list[Row], prefix: Path) -> list[Path]:
    """A line for each role, one for all together, one for float."""
    rows = [{**row, **{k: v for k, v in row["settings"].items() if k.startswith("bits_")}} for row in rows]
    series = {}
    for role, label in zip(ROLES, ("weights", "activations", "gradients")):
        others = {f"bits_{r}": REST for r in ROLES if r != role}
        series[f"{label}, the rest {REST} bits"] = by_number(where(rows, **others), f"bits_{role}", 100)
    together = [row for row in rows if len({row.get(f"bits_{r}") for r in ROLES}) == 1 and "bits_w" in row]
    series["all three"] = by_number(together, "bits_w", 100)
    measured = sorted(bits for xs, _, _ in series.values() for bits in xs)
    floats = [{**row, "bits": bits} for row in where(rows, variant="float") for bits in (*measured[:1], *measured[-1:])]
    series["float"] = by_number(floats, "bits", 100)
    series = {name: line for name, line in series.items() if line[0]}
    path = prefix.with_name(prefix.name + "-accuracy.png")
    return [plot_lines(series, path, x="bits", y="test accuracy (%)")] if series else []


STUDY = Study(
    name="bits",
    title="accuracy by bits of weights, activations and gradients",
    config=Config(),
    quick=Config(task="digits", seeds=(0,), epochs=1, batch_size=256, lr=0.05, bits=(4,)),
    runs=runs,
    expected=EXPECTED,
    plots=plots,
    notes=(
        "w4a8g8 has 4-bit weights, 8-bit activations and 8-bit gradients. First and last layer and norms have 8 bits "
        "throughout. ShiftQuant takes the groups that fold into int8 operands, at least 4 and at most 9."
    ),
)
