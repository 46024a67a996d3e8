"""theory: how close ShiftQuant's groups come to the best grouping of channels, on gradients of a real training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subbyte import data
from subbyte.quantizers import AbsMax, GroupOracle, PerChannel, Quantizer, ShiftQuant, TokenShiftQuant
from subbyte.study import Expected, Job, Row, Run, Study, Table, training
from subbyte.study.expected import largest, share_at_most
from subbyte.study.gradients import describe_gradients
from subbyte.study.plots import plot_lines
from subbyte.study.rows import beside
from subbyte.study.select import ordered, values, where
from subbyte.train import load_run
from subbyte.train.build import load_dataset, reproducible


@dataclass(frozen=True)
class Config:
    """A short int4 training; its gradients after some of its epochs, every layer, one batch."""

    task: str = "cifar10"
    model: str = "resnet20"
    scheme: str = "int4"
    seeds: tuple[int, ...] = (0,)
    epochs: int = 4
    stages: tuple[tuple[str, int], ...] = (("early", 1), ("middle", 2), ("late", 4))
    batch_size: int = 128
    groups: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 9)
    bits: tuple[int, ...] = (4, 6, 8)
    samples: int = 2


NEAR = 1.3
FREE_GROUPS = 4

EXPECTED = (
    Expected(
        "consecutive exponents: bound over the power-of-two oracle's, worst", largest("consecutive"), at_most=NEAR
    ),
    Expected("chosen exponents, up to 8: the same", largest("chosen"), at_most=NEAR),
    Expected(
        f"9 groups that fold at 4 bits: bound <= the free oracle's of {FREE_GROUPS}",
        share_at_most("folded4", 1.0),
        at_least=50,
        factor=100,
        unit="% of tensors",
        digits=0,
    ),
    Expected(
        f"5 groups that fold at 6 bits: bound <= the free oracle's of {FREE_GROUPS}",
        share_at_most("folded6", 1.0),
        at_least=50,
        factor=100,
        unit="% of tensors",
        digits=0,
    ),
    *(
        Expected(
            f"{n} groups of tokens, which fold at {bits} bits: bound <= the free oracle's of {FREE_GROUPS} of channels",
            share_at_most(f"tokens{bits}", 1.0),
            at_least=50,
            factor=100,
            unit="% of tensors",
            digits=0,
        )
        for bits, n in ((4, 5), (6, 3))
    ),
)


def quantizers(bits: int) -> dict[str, Quantizer]:
    """Those whose variance is measured, by the name in the table."""
    stochastic: dict[str, Any] = dict(rounding="stochastic")
    folds = 2 * (8 - bits) + 1
    found: dict[str, Quantizer] = {
        "tensor": AbsMax(bits, **stochastic),
        "sample (PSQ)": PerChannel(bits, axis=0, **stochastic),
        "consecutive 4": ShiftQuant(bits, groups=4, **stochastic),
        "chosen 4": ShiftQuant(bits, groups=4, exponents="chosen", max_exponent=8, **stochastic),
        "free 4": GroupOracle(bits, groups=4, **stochastic),
        "channel": PerChannel(bits, axis=1, **stochastic),
    }
    if folds > 1:
        found["consecutive, folds"] = ShiftQuant(bits, groups=folds, **stochastic)
        found["consecutive of samples, folds"] = ShiftQuant(bits, groups=folds, axis=0, **stochastic)
        found["tokens, folds"] = TokenShiftQuant(bits, groups=9 - bits, **stochastic)
    return found


def runs(config: Config) -> Iterator[Run]:
    """One training for each seed."""
    for seed in config.seeds:
        settings = {"groups": config.groups, "bits": config.bits, "samples": config.samples, "stages": config.stages}
        yield Run(
            config.scheme,
            training(
                config.task,
                config.scheme,
                seed,
                model=config.model,
                epochs=config.epochs,
                batch_size=config.batch_size,
            ),
            after=capture,
            settings=settings,
            keep_epochs=tuple(epoch for _, epoch in config.stages),
        )


def capture(job: Job) -> Iterator[Mapping[str, Any]]:
    """The training's own row, then one for each stage and layer."""
    settings = job.run.settings
    yield {}
    dataset = load_dataset(job.config)
    x, y = next(
        data.batches(
            dataset,
            job.config.batch_size,
            train=True,
            seed=job.config.seed,
            epoch=job.config.epochs,
            device=job.config.device,
            kind=job.config.augment,
            workers=0,
        )
    )
    measured = {f"{bits} bits, {name}": q for bits in settings["bits"] for name, q in quantizers(bits).items()}
    for stage, epoch in settings["stages"]:
        model = load_run(job.folder.path, checkpoint=f"epoch-{epoch}", device=job.config.device).model
        with reproducible(job.config.seed, job.config.threads):
            layers = describe_gradients(
                model, x, y, groups=settings["groups"], quantizers=measured, samples=settings["samples"]
            )
        for layer in layers:
            judged = ratios({**layer["bounds"], **layer["token_bounds"]}, settings["groups"])
            yield beside("bound", stage=stage, epoch=epoch, **layer, **judged)


def ratios(bound: Mapping[str, float], groups: tuple[int, ...]) -> dict[str, float]:
    """What is judged, of one tensor: the worst ratio to the power-of-two oracle, and folding groups to the free one."""
    found = {kind: max(bound[f"{kind}_{n}"] / bound[f"pow2_{n}"] for n in groups) for kind in ("consecutive", "chosen")}
    free = bound[f"free_{FREE_GROUPS}"]
    folds = {"folded4": "consecutive_9", "folded6": "consecutive_5", "tokens4": "tokens_5", "tokens6": "tokens_3"}
    return {**found, **{name: bound[kind] / free for name, kind in folds.items()}}


FOLDS = {
    "folded4": "4 bits: 9 groups",
    "folded6": "6 bits: 5 groups",
    "tokens4": "4 bits: 5 groups of tokens",
    "tokens6": "6 bits: 3 groups of tokens",
}
KINDS = {
    "consecutive": "consecutive exponents",
    "chosen": "chosen exponents, up to 8",
    "pow2": "power-of-two oracle",
    "free": "free oracle",
}


def tables(rows: list[Row]) -> list[Table]:
    """Bounds by number of groups, and measured variances by bits."""
    tensors = [row for row in rows if row.get("bounds")]
    if not tensors:
        return []
    groups = sorted(int(key.partition("_")[2]) for key in tensors[0]["bounds"] if key.startswith("free_"))
    return [
        *_bound_tables(tensors, groups),
        _sample_table(tensors, groups),
        _token_table(tensors),
        _variance_table(tensors),
    ]


def _bound_tables(tensors: list[Row], groups: list[int]) -> Iterator[Table]:
    heading = ("groups", *KINDS.values())
    lines = [[str(n), *(_spread([row["bounds"][f"{k}_{n}"] for row in tensors]) for k in KINDS)] for n in groups]
    yield Table(
        "Bound over that of one scale for each channel",
        heading,
        lines,
        f"Geometric mean and worst of {len(tensors)} captured tensors; one scale for the tensor: "
        f"{_spread([row['bounds']['tensor'] for row in tensors])}. 1 is the least.",
    )
    lines = []
    for n in groups:
        cells = [str(n)]
        for kind in ("consecutive", "chosen"):
            over = [row["bounds"][f"{kind}_{n}"] / row["bounds"][f"pow2_{n}"] for row in tensors]
            cells += [_spread(over), f"{sum(v <= NEAR for v in over)} of {len(over)}"]
        lines.append(cells)
    within = f"within {NEAR}"
    yield Table(
        "Bound over that of the power-of-two oracle with as many groups",
        ("groups", "consecutive", within, "chosen up to 8", within),
        lines,
    )
    lines = []
    for stage in ordered(tensors, "stage"):
        of_stage = where(tensors, stage=stage)
        cells = [str(stage), f"{_mean(values(of_stage, 'octaves')):.1f}"]
        for field in FOLDS:
            over = values(of_stage, field)
            cells += [_spread(over), f"{sum(v <= 1 for v in over)} of {len(over)}"]
        lines.append(cells)
    yield Table(
        f"Groups that fold for nothing over the free oracle of {FREE_GROUPS}",
        ("stage", "octaves between channels", *(h for name in FOLDS.values() for h in (name, "<= 1"))),
        lines,
        "Geometric mean and worst over the layers of a stage; below 1 they beat the upper bound of 4 groups.",
    )


def _sample_table(tensors: list[Row], groups: list[int]) -> Table:
    lines = []
    for n in groups:
        cells = [str(n)]
        for kind in KINDS:
            cells.append(_spread([row["sample_bounds"][f"{kind}_{n}"] * row["sample_over_channel"] for row in tensors]))
        lines.append(cells)
    one = _spread(values(tensors, "sample_over_channel"))
    return Table(
        "Groups of samples in place of channels: bound over that of one scale for each channel",
        ("groups", *KINDS.values()),
        lines,
        f"One scale for each sample (PSQ): {one}. Samples lie {_mean(values(tensors, 'sample_octaves')):.1f} octaves "
        f"apart, channels {_mean(values(tensors, 'octaves')):.1f}. "
        "In grad_input a sample's scale is outside the sum; in grad_weight it is inside, where its powers of two fold.",
    )


def _token_table(tensors: list[Row]) -> Table:
    names = list(tensors[0]["token_bounds"])
    lines = [[name.removeprefix("tokens_"), _spread([row["token_bounds"][name] for row in tensors])] for name in names]
    return Table(
        "Groups of tokens: bound over that of one scale for each channel",
        ("groups", "consecutive exponents"),
        lines,
        "A token is a pixel of a sample: grad_weight reduces over tokens. Below 1: less variance than a free scale for "
        "each channel could leave.",
    )


def _variance_table(tensors: list[Row]) -> Table:
    labels = list(tensors[0]["variance"])
    bits = list(dict.fromkeys(label.partition(", ")[0] for label in labels))
    names = list(dict.fromkeys(label.partition(", ")[2] for label in labels))
    lines = []
    for name in names:
        cells = [name]
        for b in bits:
            own = [row["variance"].get(f"{b}, {name}") for row in tensors]
            least = [row["variance"][f"{b}, channel"] for row in tensors]
            if own[0] is None:
                cells += ["", ""]
            else:
                cells += [f"{_geometric(own):.2e}", f"{_geometric([a / c for a, c in zip(own, least)]):.2f}"]
        lines.append(cells)
    headings = ["quantizer", *(h for b in bits for h in (f"{b}: of |g|^2", "over channel"))]
    return Table("Measured variance of the rounded gradient", headings, lines, "Geometric means over all tensors.")


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def _geometric(numbers: list[float]) -> float:
    return math.exp(_mean([math.log(v) for v in numbers]))


def _spread(numbers: list[float]) -> str:
    return f"{_geometric(numbers):.2f} (worst {max(numbers):.2f})"


def plots(rows: list[Row], prefix: Path) -> list[Path]:
    """The bound by number of groups."""
    tensors = [row for row in rows if row.get("bounds")]
    if not tensors:
        return []
    groups = sorted(int(key.partition("_")[2]) for key in tensors[0]["bounds"] if key.startswith("free_"))
    none = [None] * len(groups)
    series = {
        label: (groups, [_geometric([row["bounds"][f"{kind}_{n}"] for row in tensors]) for n in groups], none)
        for kind, label in KINDS.items()
    }
    path = prefix.with_name(prefix.name + "-bounds.png")
    y = "bound over one scale a channel (geometric mean)"
    return [plot_lines(series, path, x="groups", y=y, log=True)]


STUDY = Study(
    name="theory",
    title="ShiftQuant's variance against the best grouping of channels",
    config=Config(),
    quick=Config(task="digits", model="resnet8", epochs=2, stages=(("early", 1), ("late", 2)), bits=(4,), samples=1),
    runs=runs,
    expected=EXPECTED,
    metric="",
    tables=tables,
    plots=plots,
    notes=(
        "The variance of stochastic rounding is at most M / (4 Q^2) sum_k s_k^2, with s_k the range of channel k's "
        "group: its ratio between two groupings depends on the channels' ranges alone. Gradients are those of the "
        "outputs of all convolutions and linear layers in an int4 training step, before they are quantized."
    ),
)
