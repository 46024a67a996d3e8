"""`subbyte bench`."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from subbyte.cli.options import make_console

if TYPE_CHECKING:
    from rich.console import Console

    from subbyte.bench import Options, Row

REPORT = "report"
_FILE = "bench.jsonl"
_PAGE = "bench.md"


def command(
    suite: Annotated[
        str,
        typer.Argument(
            help="gemm, linear, conv, norm, quantize, step, memory, crossover, all, or report (measures nothing, writes"
            " the page and the plots again)."
        ),
    ],
    cases: Annotated[list[str] | None, typer.Option(help="Only cases like this glob; may be repeated.")] = None,
    impl: Annotated[
        list[str] | None, typer.Option(help="Only implementations like this glob, as 'subbyte/*'; may be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which the implementations take turns.")] = 11,
    seconds: Annotated[
        float, typer.Option(min=0.0, help="Time for one implementation in a case: a slow one sits later rounds out.")
    ] = 2.5,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's choice.")] = None,
    isa: Annotated[
        str | None, typer.Option(help="avx2: this library and torch use nothing above it, in a process of its own.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the data.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny cases: does it run? Keeps no rows without --json.")
    ] = False,
    json: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Where rows are added, a line each. Default: OUT/bench.jsonl.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where bench.md and the plots go.")] = Path("results"),
) -> None:
    """Measure the integer kernels against torch and torchao, in one process and in turns, and judge the targets.

    Rows are added to a file of JSON lines; the page and the plots are made from that file. A row of ours counts only if
    its kernels ran, its products were integer ones and its result shows an error. Exit code 1 if one was refused, or
    failed.
    """
    from subbyte.bench import ALL, Options
    from subbyte.bench.runner import AVX2, avx2_words, limited_to, run_limited

    path = json or (None if quick else out / _FILE)
    console = make_console()
    if suite == REPORT:
        _report(console, path or out / _FILE, out)
        return
    if threads:
        import torch

        torch.set_num_threads(threads)
    options = Options(
        suites=ALL if suite == "all" else (suite,),
        cases=tuple(cases or ()),
        impls=tuple(impl or ()),
        rounds=rounds,
        seconds=seconds,
        quick=quick,
        seed=seed,
    )
    where = ["--out", str(out), *(["--json", str(path)] if path else [])]
    if isa and not limited_to():
        refused = run_limited(isa, ["bench", suite, *_words(options, threads), *where]) != 0
    else:
        isa = limited_to() or None
        typed = ["subbyte", "bench", suite, *_words(options, threads), *(["--isa", isa] if isa else [])]
        refused = _measure(console, dataclasses.replace(options, command=shlex.join(typed)), path)
        if suite == "all" and not (isa or quick or cases or impl):
            refused |= run_limited(AVX2, ["bench", "step", *avx2_words(), *_words(options, threads), *where]) != 0
    if path and not limited_to():
        _report(console, path, out, options)
    if refused:
        raise typer.Exit(1)


def _words(options: Options, threads: int | None) -> list[str]:
    """The options that differ from their defaults, as a user types them."""
    words: list[str] = []
    for flag, values in (("--cases", options.cases), ("--impl", options.impls)):
        words += [word for value in values for word in (flag, value)]
    defaults = type(options)(options.suites)
    for name in ("rounds", "seconds", "seed"):
        if getattr(options, name) != getattr(defaults, name):
            words += [f"--{name}", f"{getattr(options, name):g}"]
    words += ["--threads", str(threads)] if threads else []
    return [*words, "--quick"] if options.quick else words


def _measure(console: Console, options: Options, path: Path | None) -> bool:
    """Run the cases, add their rows to the file, print a table after each suite; was one refused?"""
    from itertools import groupby

    from subbyte.bench import append, run, tables

    found: list[Row] = []
    with _Display(console) as display:
        for suite, groups in groupby(run(options, display.case), key=lambda rows: rows[0].bench if rows else ""):
            mine: list[Row] = []
            for rows in groups:
                mine += rows
                if path:
                    append(path, rows)
            if mine:
                console.print(tables.table(mine, suite))
            found += mine
    return any(row.refused for row in found)


def _report(console: Console, path: Path, out: Path, options: Options | None = None) -> None:
    """The verdict on the targets of what was run (None: on all), and the page and the plots from the whole file."""
    from subbyte.bench import plots, read, tables, targets
    from subbyte.train.checkpoint import write_text

    rows = read(path)
    goals = [goal for goal in targets.goals() if options is None or options.includes(goal.bench, goal.case)]
    if goals:
        console.print(tables.goal_table(targets.judge(rows, goals)))
    try:
        pictures = plots.draw(rows, out)
        said = ", ".join(str(out / name) for name in pictures)
    except ImportError:
        pictures, said = [], "no plots: matplotlib is not installed (pip install 'subbyte[plot]')"
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / _PAGE, tables.page(rows, pictures))
    console.print(f"{path} -> {out / _PAGE}, {said}", highlight=False, markup=False, soft_wrap=True)


class _Display:
    """A bar on a terminal, a line for each case elsewhere."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.console, self.bar = console, None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self.bar = Progress(*columns, console=console, transient=True)
            self.task = self.bar.add_task("", total=None)

    def __enter__(self) -> _Display:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def case(self, name: str, done: int, total: int) -> None:
        """A case begins."""
        if self.bar:
            self.bar.update(self.task, description=name, completed=done, total=total)
        else:
            self.console.print(f"{done + 1}/{total}  {name}", highlight=False, markup=False, soft_wrap=True)
