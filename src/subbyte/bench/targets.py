"""What the benchmarks must reach, as data, and the verdict on a file of rows. A case that is missing counts as missed.

The figures are ratios within one run on 2 cores with AVX-512 VNNI, for int4 and int6 alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from subbyte.bench import gemm, impls, layers, memory, quantize, rows, step
from subbyte.bench.rows import Row

BITS = ("int4", "int6")
SPEED, BANDWIDTH, BYTES = "seconds", "bandwidth", "bytes"
_UNITS = {SPEED: "times as fast as", BANDWIDTH: "of the bandwidth of", BYTES: "times fewer bytes than"}
AVX2 = "avx2"


@dataclass(frozen=True)
class Goal:
    """One figure to reach: in this case, ours is at least `least` times as good as the peer.

    ours  implementations of which the best counts
    what  SPEED, BANDWIDTH or BYTES, of rows.ratio
    """

    bench: str
    case: str
    ours: tuple[str, ...]
    peer: str
    least: float
    what: str = SPEED
    forced_isa: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.bench, self.case, self.forced_isa

    def __str__(self) -> str:
        return f"{self.least:g} {_UNITS[self.what]} {self.peer}"


def _each(bench: str, cases: Iterable[str], suffixes: Sequence[str], peer: str, least: float, **more) -> list[Goal]:
    """A goal for every case and both widths; suffixes: of the implementations of which the best counts."""
    return [
        Goal(bench, case, tuple(f"subbyte/{bits}{s}" for s in suffixes), peer, least, **more)
        for case in cases
        for bits in BITS
    ]


def goals() -> list[Goal]:
    """Every one of them."""
    products = [gemm.case_name(*size) for size in gemm.SIZES]
    linears = [gemm.case_name(*size) for size in layers.LINEARS]
    convs = [layers.conv_name(*size) for size in layers.CONVS]
    norms = [case.name for case in layers.norm(quick=False)]
    sizes = [case.name for case in quantize.cases(quick=False)]
    networks = [name for name in step.TASKS if name != step.ENCODER]
    saved = [f"{task}, {memory.SAVED}" for task in memory.tasks(quick=False)]
    plain, fused, either = ("",), (impls.FUSED,), (impls.FUSED, "")
    return [
        *_each("gemm", products, plain, impls.INT_MM, 0.95),
        *_each("gemm", products, plain, "torch-bf16", 1.85),
        *_each("gemm", products, plain, "torch-fp16", 1.85),
        *_each("linear", linears, plain, "torch-bf16", 1.7),
        *_each("linear", linears, plain, impls.TORCHAO_COMPILED, 1.5),
        *_each("conv", convs, plain, "torch-bf16", 1.8),
        *_each("norm", norms, plain, "torch-fp32", 2),
        *_each("norm", norms, plain, "torch-bf16", 1.36),
        *_each("quantize", sizes, plain, quantize.COPY, 0.7, what=BANDWIDTH),
        *_each("quantize", sizes, (quantize.STOCHASTIC,), quantize.COPY, 0.7, what=BANDWIDTH),
        *_each("step", networks, fused, "torch-bf16", 2),
        *_each("step", networks, fused, "torch-fp32", 3.5),
        *_each("step", networks, plain, "torch-bf16", 1.5),
        *_each("step", [step.ENCODER], either, "torch-bf16", 1.5),
        *[
            Goal("memory", case, tuple(f"subbyte/int4{s}" for s in either), "torch-fp32", 6, BYTES)  # 1/6 of its bytes
            for case in saved
        ],
        *_each("step", [step.RESNET18], either, "torch-fp32", 1.3, forced_isa=AVX2),
    ]


@dataclass(frozen=True)
class Verdict:
    """A goal and what the rows say: ratio None (and why) where no run has both sides, which counts as missed.

    at_least: the peer ran on part of the work, so that the ratio is a lower bound.
    """

    goal: Goal
    impl: str
    ratio: rows.Ratio | None
    why: str = ""
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.ratio is not None and self.ratio.median >= self.goal.least

    def __str__(self) -> str:
        return "met" if self.met else "missed" if self.ratio else "missed: no figure"


def judge(measured: Sequence[Row], wanted: Iterable[Goal] | None = None) -> list[Verdict]:
    """The verdict on each goal (all of them if None), in order."""
    by_key: dict[tuple[str, str, str], list[Row]] = {}
    for row in measured:
        by_key.setdefault(row.key, []).append(row)
    return [_judge(goal, by_key.get(goal.key, [])) for goal in (goals() if wanted is None else wanted)]


def _judge(goal: Goal, here: Sequence[Row]) -> Verdict:
    best: Verdict | None = None
    for name in goal.ours:
        pair = rows.together(here, goal.key, name, goal.peer)
        if pair is not None:
            found = Verdict(goal, name, rows.ratio(*pair, what=goal.what), at_least=pair[1].part < 1)
            if best is None or best.ratio is None or found.ratio.median > best.ratio.median:  # type: ignore[union-attr]
                best = found
    if best is not None:
        return best
    skipped = {row.impl: row.skipped for row in here if row.skipped}
    reasons = [f"{name}: {skipped[name]}" for name in (*goal.ours, goal.peer) if name in skipped]
    return Verdict(goal, goal.ours[0], None, "; ".join(reasons) or "not in the file")
