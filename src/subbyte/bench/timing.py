"""Timing implementations in turns, round by round, so that what slows the machine slows all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

BLOCK_SECONDS = 0.02  # a sample lasts at least this long: many calls of a short one
LEAST_ROUNDS = 3


class Skip(Exception):
    """This implementation cannot run here; the message says why."""


class Refused(Exception):
    """It ran, and not as what it says it is: nothing was quantized, the reference ran... Its time counts nothing."""


@dataclass(frozen=True)
class Trial:
    """One way to run an implementation: `call` does the work once. way: what tells it from the other ways."""

    call: Callable[[], Any]
    way: str = ""


@dataclass(frozen=True)
class Prepared:
    """An implementation, built and checked: the ways to run it, and what the check found (fields of a Row)."""

    trials: Sequence[Trial]
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """One implementation of a case.

    prepare       builds it; raises Skip or Refused
    ops, bytes    2 x multiply-accumulates of a call, bytes that a call must move
    part          share of the case's work that a call does
    """

    impl: str
    prepare: Callable[[], Prepared]
    ops: int = 0
    bytes: int = 0
    part: float = 1.0


@dataclass(frozen=True)
class Case:
    """What is timed, and by whom: `candidates` builds nothing yet."""

    suite: str
    name: str
    candidates: Callable[[], Sequence[Candidate]]


def once(call: Callable[[], Any], calls: int = 1) -> float:
    """Seconds of a call, as the mean of `calls`."""
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) / calls


def quickest(call: Callable[[], Any], times: int = 3) -> float:
    """Seconds of the quickest of a few calls, after one that does not count."""
    once(call)
    return min(once(call) for _ in range(times))


def fastest(trials: Sequence[Trial]) -> tuple[Trial, float]:
    """(the way that takes least, its seconds). Each is called once before its time counts, then twice, in turns."""
    first = [once(trial.call) for trial in trials]
    best = [once(trial.call) for trial in trials]
    if len(trials) > 1 and max(first) < 1.0:
        best = [min(seconds, once(trial.call)) for seconds, trial in zip(best, trials)]
    i = best.index(min(best))
    return trials[i], best[i]


def alternate(
    trials: Mapping[str, Trial], estimates: Mapping[str, float], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Samples of each, taken A B C A B C ...: sample i of all of them belongs to round i.

    estimates   seconds of a call
    seconds     that one implementation may take in all: a slow one takes part in the first rounds only, at least
                LEAST_ROUNDS of them
    """
    calls = {name: max(1, math.ceil(BLOCK_SECONDS / max(estimates[name], 1e-9))) for name in trials}
    shares = {name: max(LEAST_ROUNDS, int(seconds / (estimates[name] * calls[name]))) for name in trials}
    samples: dict[str, list[float]] = {name: [] for name in trials}
    for i in range(rounds):
        for name, trial in trials.items():
            if i < shares[name]:
                samples[name].append(once(trial.call, calls[name]))
    return samples
