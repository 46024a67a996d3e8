"""`subbyte demo`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from subbyte.cli.allocator import keep_freed_memory
from subbyte.cli.options import make_console

if TYPE_CHECKING:
    from rich.console import Console

    from subbyte.train import Outcome

SCHEMES = ("float", "int4")


def command(
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each of the two runs.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; the net is too small to gain from more.")] = 1,
    out: Annotated[Path, typer.Option(help="Where the run folders demo-float and demo-int4 go.")] = Path("runs"),
) -> None:
    """Train the same network twice on the embedded digits, in float32 and in 4-bit integers, and compare.

    The two run folders are the demo's own and are made anew each time.
    """
    keep_freed_memory()
    from subbyte.scheme import Scheme
    from subbyte.train import Config, plot_curves, read_rows, train

    console = make_console()
    outcomes: dict[str, Outcome] = {}
    for name in SCHEMES:
        run_dir = out / f"demo-{name}"
        if (run_dir / "config.json").is_file():
            shutil.rmtree(run_dir)
        console.rule(f"digits, smallcnn, {name}")
        config = Config.for_task("digits", epochs=epochs, threads=threads, scheme=Scheme.from_name(name).to_dict())
        outcomes[name] = train(config, run_dir, console=console)
        if not outcomes[name].finished:
            console.print(f"demo ended early: {outcomes[name].reason}")
            return
    plot = out / "demo.png"
    try:
        plot_curves({name: read_rows(o.folder.metrics_file) for name, o in outcomes.items()}, plot)
        where = f"plot: {plot}"
    except ImportError:
        where = "no plot: matplotlib is not installed (pip install 'subbyte[plot]')"
    _print_table(console, outcomes)
    console.print(where, highlight=False, markup=False, soft_wrap=True)


def _print_table(console: Console, outcomes: dict[str, Outcome]) -> None:
    from rich.table import Table

    from subbyte.train.stop import format_seconds

    table = Table("", *outcomes, title="digits, smallcnn: the same network, data and seed", title_justify="left")
    rows = {
        "test accuracy": lambda o: f"{o.test_accuracy:.2%}",
        "best test accuracy": lambda o: f"{o.best_accuracy:.2%}",
        "test loss (nats)": lambda o: f"{o.test_loss:.4f}",
        "integer share (counted)": lambda o: f"{o.integer_share:.2%}",
        "time": lambda o: format_seconds(o.seconds),
        "run folder": lambda o: str(o.folder.path),
    }
    for label, text in rows.items():
        table.add_row(label, *(text(outcome) for outcome in outcomes.values()))
    console.print(table)
