"""`subbyte reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from subbyte.cli.allocator import keep_freed_memory
from subbyte.cli.options import DataDirOption, DeviceOption, make_console

if TYPE_CHECKING:
    from rich.console import Console

    from subbyte.study import Progress, Study

SHOWN = 6  # names of runs in a line before it says how many more
QUICK_OUT = Path("runs") / "quick"


def command(
    name: Annotated[str | None, typer.Argument(help="The study; without it, or with --list, their names.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run of seconds, kept apart in runs/quick.")] = False,
    data_dir: DataDirOption = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds to run, as in '0 1 2'; the default is the study's own.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="Runs whose name matches this glob, such as 'int4-*'.")] = None,
    time_limit: Annotated[
        str | None, typer.Option(help="Checkpoint and end after this time: 90s, 10m, 1h30m, or minutes.")
    ] = None,
    budget: Annotated[bool, typer.Option("--budget", help="Print what the study will cost, and end.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Tables and plots from the rows, of all studies without NAME; run nothing.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write one self-contained page of everything in --out, run nothing.")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="The studies and their titles.")] = False,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads. Two processes of one thread each do more than one of two.")
    ] = 1,
    device: DeviceOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of rows, tables and plots [results, or runs/quick with --quick].")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
) -> None:
    """Run a study: several seeds, paired, each run a folder; rows in results/NAME.jsonl, tables and plots beside them.

    The same command goes on where it was stopped, and does nothing where all is done. Processes may share a study:
    start it twice on two cores.
    """
    keep_freed_memory()
    from subbyte.recipes import find, studies
    from subbyte.study import summarize
    from subbyte.study.page import write_page

    console = make_console()
    results = out or (QUICK_OUT if quick else Path("results"))
    if html is not None:
        write_page(results, html)
        console.print(f"page: {html}", highlight=False, markup=False, soft_wrap=True)
        return
    if report and name is None:
        for study in studies().values():
            if (results / f"{study.name}.jsonl").is_file():
                console.print(f"tables and plots: {summarize(study, results)}", highlight=False, markup=False)
        return
    if show or name is None:
        for study in studies().values():
            console.print(f"{study.name:<20} {study.title}", highlight=False, markup=False, soft_wrap=True)
        return
    study = find(name)
    if report:
        page = summarize(study, results)
        console.print(f"tables and plots: {page}", highlight=False, markup=False, soft_wrap=True)
        return
    _run(study, console, quick, data_dir, seeds, only, time_limit, budget, threads, device, results, runs)


def _run(
    study: Study,
    console: Console,
    quick: bool,
    data_dir: Path | None,
    seeds: str | None,
    only: str | None,
    time_limit: str | None,
    budget: bool,
    threads: int,
    device: str | None,
    results: Path,
    runs: Path,
) -> None:
    from subbyte.study import Place, execute

    words = ["subbyte", "reproduce", study.name, *(["--quick"] if quick else [])]
    words += ["--seeds", f"'{seeds}'"] if seeds else []
    words += ["--data-dir", "DIR"] if data_dir else []
    place = Place(
        out=results,
        runs=(QUICK_OUT if quick and runs == Path("runs") else runs) / study.name,
        data_dir=str(data_dir.absolute()) if data_dir else None,
        device=device or "cpu",
        threads=threads,
        only=only,
        time_limit=_seconds(time_limit),
        budget_only=budget,
        command=" ".join(words),
    )
    progress = execute(study, study.settings(quick=quick, seeds=_seeds(seeds)), place, console)
    for line in _closing(study.name, progress, results):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _closing(name: str, progress: Progress, results: Path) -> list[str]:
    lines = [f"{len(progress.done)} runs done now"]
    if progress.left:
        why = f" ({progress.reason})" if progress.reason else ""
        shown = progress.left[:SHOWN]
        more = f" and {len(progress.left) - SHOWN} more" if len(progress.left) > SHOWN else ""
        lines.append(f"left{why}: {len(progress.left)} runs: {', '.join(shown)}{more}")
        lines.append("the same command goes on")
    if (results / f"{name}.md").is_file():
        lines.append(f"rows: {results / name}.jsonl  tables and plots: {results / name}.md")
    return lines


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(f"--seeds '{text}': write whole numbers, as in '0 1 2'") from None


def _seconds(text: str | None) -> float | None:
    """A duration; a bare number counts minutes here, where runs take hours."""
    from subbyte.train.stop import parse_seconds

    return None if text is None else parse_seconds(f"{text}m" if text.replace(".", "").isdigit() else text)
