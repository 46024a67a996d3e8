"""Running a study: what isn't in its rows yet is trained, measured and appended; a pause leaves all in place.

Several processes may run the same study side by side (one a core is the best use of a CPU): each takes a run that no
other holds.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from subbyte import provenance
from subbyte.study.budget import budget, budget_table
from subbyte.study.rows import RowFile, base_row, rows_of_others, trained
from subbyte.study.select import Row
from subbyte.study.study import Job, Run, Study, StudyError
from subbyte.study.summary import summarize
from subbyte.train import Config, DivergedError, Outcome, train
from subbyte.train.build import resolve_threads
from subbyte.train.folder import hold
from subbyte.train.stop import format_seconds

SUMMARY_SECONDS = 300.0
"""Between tables and plots made anew while runs go on."""


@dataclass(frozen=True)
class Place:
    """Where and how long a study runs: nothing here changes what its rows say, save their times.

    out: the folder of rows, tables and plots; runs: that of the run folders. only: a glob over the names of runs.
    time_limit in seconds. command: what a row gives as the way to repeat it.
    """

    out: Path
    runs: Path
    data_dir: str | None = None
    device: str = "cpu"
    threads: int = 1
    only: str | None = None
    time_limit: float | None = None
    budget_only: bool = False
    command: str = ""
    commit: str = field(default_factory=provenance.commit)

    def configure(self, config: Config) -> Config:
        """The run's Config in this place."""
        threads = resolve_threads(self.threads)
        return dataclasses.replace(config, data_dir=self.data_dir, device=self.device, threads=threads)


@dataclass(frozen=True)
class Progress:
    """How a call of `execute` ended: names of the runs done now, and of those left."""

    done: list[str]
    left: list[str]
    reason: str = ""


def planned(study: Study, settings: Any, only: str | None = None) -> list[Run]:
    """The runs of a study; StudyError where `only` names none."""
    runs = list(study.runs(settings))
    _check_distinct(runs)
    chosen = [run for run in runs if only is None or fnmatch.fnmatchcase(run.name, only)]
    if only is not None and not chosen:
        raise StudyError(f"no run of {study.name} matches '{only}'; there are: {', '.join(run.name for run in runs)}")
    return chosen


def _check_distinct(runs: Sequence[Run]) -> None:
    """StudyError where two runs would write the same row: a recipe that forgot what tells its variants apart."""
    seen: dict[str, str] = {}
    for run in runs:
        if run.key() in seen:
            raise StudyError(f"the runs {seen[run.key()]} and {run.name} are the same run")
        seen[run.key()] = run.name


def execute(study: Study, settings: Any, place: Place, console: Console) -> Progress:
    """Runs what the study's rows lack. Prints a budget first; returns what was done and what is left."""
    begun = time.monotonic()
    runs = planned(study, settings, place.only)
    rows = RowFile(place.out / f"{study.name}.jsonl")
    _borrow(rows, study.name, runs)
    done_before = rows.keys()
    left = [run for run in runs if run.key() not in done_before]
    console.print(f"{study.name}: {len(runs)} runs, {len(runs) - len(left)} done already, {len(left)} to do")
    if left:
        costs = budget(left, [place.configure(run.config) for run in left], place.runs)
        if costs:
            console.print(budget_table(costs).markdown(), highlight=False, markup=False, soft_wrap=True)
    done: list[str] = []
    summarized = begun
    reason = "the budget was asked for, no run" if place.budget_only else ""
    for run in left if not place.budget_only else ():
        rest = None if place.time_limit is None else place.time_limit - (time.monotonic() - begun)
        if rest is not None and rest <= 0:
            reason = f"the time limit of {format_seconds(place.time_limit or 0)} is reached"
            break
        with _reserved(run, place.runs) as mine:
            if not mine:
                console.print(f"{run.name}: another process is at it", highlight=False, markup=False)
                continue
            if run.key() in rows.keys():  # noqa: SIM118 - a method, not a mapping's
                continue
            console.rule(run.name)
            found, reason = _perform(run, study.name, place, rest, console)
            if found is None:
                break
            rows.append(found)
            done.append(run.name)
        if time.monotonic() - summarized > SUMMARY_SECONDS:
            summarize(study, place.out)
            summarized = time.monotonic()
    if (done or done_before) and not place.budget_only:
        summarize(study, place.out)
    remaining = [run.name for run in left if run.key() not in rows.keys()]  # noqa: SIM118
    return Progress(done, remaining, reason)


def _borrow(rows: RowFile, study: str, runs: Sequence[Run]) -> None:
    """Takes over from other studies the rows of runs that are the same in every setting."""
    done, others = rows.keys(), rows_of_others(rows.path)
    for run in runs:
        if run.key() in others and run.key() not in done:
            rows.append([{**row, "study": study} for row in others[run.key()]])


def _perform(run: Run, study: str, place: Place, rest: float | None, console: Console) -> tuple[list[Row] | None, str]:
    """(the run's rows, "") or (None, why it paused)."""
    config = place.configure(run.config)
    folder = run.folder(place.runs)
    row = base_row(study, run, config, place.command, place.commit)
    begun = time.monotonic()
    if run.trains:
        try:
            outcome = _trained(run, place, rest, console)
        except DivergedError as error:
            return [{**row, "diverged": str(error)}], ""
        if not outcome.finished:
            return None, outcome.reason
        row |= trained(folder, outcome)
    extra: Sequence[Any] = [{}] if run.after is None else list(run.after(Job(run, config, folder)))
    if not run.trains:
        row["seconds"] = round(time.monotonic() - begun, 1)
    return [{**row, **more} for more in extra], ""


def _trained(run: Run, place: Place, rest: float | None, console: Console) -> Outcome:
    """Trains the run in its folder, or goes on there; before it the run that it begins with, where that isn't done."""
    folder, config, begun = run.folder(place.runs), place.configure(run.config), time.monotonic()
    weights = None
    if run.begins is not None:
        with _reserved(run.begins, place.runs) as mine:
            if not mine:
                raise StudyError(f"{run.name} begins where {run.begins.name} ends, and another process is at that")
            before = _trained(run.begins, place, rest, console)
        if not before.finished:
            return before
        weights = before.folder.last
        rest = None if rest is None else max(rest - (time.monotonic() - begun), 0.0)
    resume = folder.config_file.is_file()
    if folder.path.is_dir() and not resume:
        shutil.rmtree(folder.path)  # killed before its settings were written: there is nothing in it
    return train(
        config,
        folder.path,
        resume=resume,
        time_limit=rest,
        keep_epochs=run.keep_epochs,
        weights=weights,
        console=console,
    )


def _reserved(run: Run, runs: Path) -> Any:
    """Holds the run for this process, from its training to its row."""
    runs.mkdir(parents=True, exist_ok=True)
    lock = runs / f"{run.name}-{run.key()}.lock"
    lock.touch()
    return hold(lock)
