"""Runs cases: prepare and check each implementation, time them in turns, make the rows; and how to limit the ISA."""

from __future__ import annotations

import datetime
import fnmatch
import functools
import gc
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from subbyte import provenance
from subbyte.backends import _native
from subbyte.bench import crossover, gemm, layers, memory, quantize, rows, step, targets
from subbyte.bench.rows import Row
from subbyte.bench.timing import Candidate, Case, Prepared, Refused, Skip, Trial, alternate, fastest

TIMED: dict[str, Callable[[bool], list[Case]]] = {
    "gemm": gemm.cases,
    "linear": layers.linear,
    "conv": layers.conv,
    "norm": layers.norm,
    "quantize": quantize.cases,
    "step": step.cases,
    "crossover": crossover.cases,
}
SUITES = (*TIMED, "memory")
ALL = tuple(name for name in ("gemm", "linear", "conv", "norm", "quantize", "step", "memory", "crossover"))

_BY_BANDWIDTH = ("norm", "quantize")
_PEAK_SIZES = {False: (1024, 2048, 4096), True: (128,)}
_COPY_MIB = {False: 256, True: 1}
_FORCED = "SUBBYTE_BENCH_ISA"
AVX2 = targets.AVX2
_LIMITS = {
    AVX2: {
        _native.ISA_VARIABLE: "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}
"""What limits this library, ATen, oneDNN and MKL to an instruction set; each reads it when it is loaded."""


@dataclass(frozen=True)
class Options:
    """What to run and how long.

    cases, impls  globs; empty: all
    rounds        of turns; seconds: that one implementation may take in a case
    """

    suites: tuple[str, ...]
    cases: tuple[str, ...] = ()
    impls: tuple[str, ...] = ()
    rounds: int = 11
    seconds: float = 2.5
    quick: bool = False
    seed: int = 0
    command: str = ""

    def includes(self, suite: str, case: str) -> bool:
        """Is this case, of the table of targets, one that these options run?"""
        return suite in self.suites and not self.quick and _wanted(case, self.cases)


Announce = Callable[[str, int, int], None]
"""Told of each case before it begins: its name, how many are done, how many there are."""


def limited_to() -> str:
    """The instruction set that this whole process was limited to when it began, or ""."""
    return os.environ.get(_FORCED, "")


def avx2_words() -> list[str]:
    """The arguments of `subbyte bench step` for what the targets ask of AVX2."""
    wanted = [goal for goal in targets.goals() if goal.forced_isa == AVX2]
    impls = sorted({impl for goal in wanted for impl in (*goal.ours, goal.peer)})
    cases = sorted({goal.case for goal in wanted})
    return [w for flag, values in (("--cases", cases), ("--impl", impls)) for v in values for w in (flag, v)]


def run_limited(isa: str, arguments: Sequence[str]) -> int:
    """`subbyte` with these arguments in a fresh process in which torch, too, uses nothing above isa; its exit code."""
    if isa not in _LIMITS:
        raise ValueError(f"--isa takes {', '.join(_LIMITS)}, not {isa!r}")
    if isa not in _native.isas():
        raise ValueError(f"this machine has no {isa}, or the kernels are not built; here are: {_native.isas()}")
    environment = {**os.environ, **_LIMITS[isa], _FORCED: isa}
    return subprocess.run([sys.executable, "-m", "subbyte.cli", *arguments], env=environment, check=False).returncode


def chosen(options: Options) -> list[Case]:
    """The cases to time, without those of the memory suite. ValueError where a glob matches none at all."""
    unknown = [name for name in options.suites if name not in SUITES]
    if unknown:
        raise ValueError(f"unknown suite {unknown[0]!r}; there are: {', '.join(SUITES)}")
    found = [case for name in options.suites if name in TIMED for case in TIMED[name](options.quick)]
    kept = [case for case in found if _wanted(case.name, options.cases)]
    if not kept and not _memory_cases(options):
        names = [case.name for case in found] + memory.case_names(options.quick) * ("memory" in options.suites)
        raise ValueError(f"no case is called like {', '.join(options.cases)}; there are: {', '.join(names)}")
    return kept


def _memory_cases(options: Options) -> list[str]:
    return [n for n in memory.case_names(options.quick) if "memory" in options.suites and _wanted(n, options.cases)]


def _wanted(name: str, globs: Sequence[str]) -> bool:
    return not globs or any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def run(options: Options, announce: Announce = lambda name, done, total: None) -> Iterator[list[Row]]:
    """The rows of one case after the other, as they are measured."""
    timed, held = chosen(options), _memory_cases(options)
    for i, case in enumerate(timed):
        announce(f"{case.suite}: {case.name}", i, len(timed) + len(held))
        yield _run_case(case, options)
    for i, name in enumerate(held, len(timed)):
        announce(f"memory: {name}", i, len(timed) + len(held))
        yield _run_memory(name, options)


def _run_case(case: Case, options: Options) -> list[Row]:
    torch.manual_seed(options.seed)
    make = _row_maker(case.suite, case.name, options)
    found: list[Row] = []
    ready: dict[str, tuple[Candidate, Prepared, Trial]] = {}
    estimates: dict[str, float] = {}
    for candidate in case.candidates():
        if not _wanted(candidate.impl, options.impls):
            continue
        try:
            prepared = candidate.prepare()
            trial, estimates[candidate.impl] = fastest(prepared.trials)
        except Exception as reason:
            found.append(_without_figure(make, candidate.impl, reason))
            continue
        ready[candidate.impl] = candidate, prepared, trial
        gc.collect()
    samples = alternate({n: trial for n, (_, _, trial) in ready.items()}, estimates, options.rounds, options.seconds)
    for name, (candidate, prepared, trial) in ready.items():
        first, middle, third = rows.quartiles(samples[name])
        share = _share(case.suite, candidate, middle, options.quick)
        found.append(
            make(
                name,
                seconds=middle,
                spread=(third - first) / middle,
                samples=[float(f"{s:.4g}") for s in samples[name]],
                ops=candidate.ops or None,
                bytes=candidate.bytes or None,
                part=candidate.part,
                roofline=share,
                layout=trial.way,
                **prepared.evidence,
            )
        )
    return found


def _without_figure(make: Callable[..., Row], impl: str, reason: Exception) -> Row:
    """The row of what did not run: one defect must not cost the figures of all the others, and is not hidden either."""
    expected = isinstance(reason, (Skip, Refused))
    said = str(reason) if expected else f"failed: {type(reason).__name__}: {str(reason).strip()[:300]}"
    return make(impl, skipped=said, refused=not isinstance(reason, Skip))


def _share(suite: str, candidate: Candidate, seconds: float, quick: bool) -> float | None:
    """Of what this machine reaches, measured once in this process."""
    if suite in _BY_BANDWIDTH:
        return candidate.bytes / seconds / _bandwidth(quick)
    return candidate.ops / seconds / _peak(quick) if candidate.ops else None


@functools.cache
def _peak(quick: bool) -> float:
    return gemm.int8_peak(_PEAK_SIZES[quick])


@functools.cache
def _bandwidth(quick: bool) -> float:
    return quantize.copy_bandwidth(_COPY_MIB[quick])


def _run_memory(name: str, options: Options) -> list[Row]:
    make = _row_maker("memory", name, options)
    found = []
    for impl in memory.IMPLS:
        if _wanted(impl, options.impls):
            try:
                found.append(make(impl, **memory.measure(name, impl)))
            except Exception as reason:
                found.append(_without_figure(make, impl, reason))
    return found


def _row_maker(bench: str, case: str, options: Options) -> Callable[..., Row]:
    """Row with what all rows of a case share."""
    threads = torch.get_num_threads()
    shared: dict[str, Any] = dict(
        bench=bench,
        case=case,
        device="cpu",
        threads=threads,
        commit=_commit(),
        machine=provenance.machine(threads),
        torch=torch.__version__,
        time=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds"),
        seed=options.seed,
        isa=_native.isas()[-1] if _native.isas() else platform.machine(),
        forced_isa=limited_to(),
        command=options.command,
    )
    return lambda impl, **own: Row(impl=impl, **shared, **own)


@functools.cache
def _commit() -> str:
    return provenance.commit()
