"""The command line: `subbyte train | eval | predict | inspect | bench | schemes | reproduce | doctor | demo | rtl`.

Each command is the function `command` of one file of this package, and imports what it needs when it is called: --help
need not wait for the training code.
"""

from __future__ import annotations

from typing import Annotated

import typer

from subbyte.cli import bench, demo, doctor, evaluate, inspect, predict, reproduce, schemes, train
from subbyte.cli.errors import friendly
from subbyte.rtl import resources_report
from subbyte.rtl.cli import app as rtl

app = typer.Typer(
    name="subbyte",
    help="Train neural networks in integers of 2 to 8 bits.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(f"subbyte {version('subbyte')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train neural networks in integers of 2 to 8 bits."""


for _name, _module in {
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "inspect": inspect,
    "bench": bench,
    "schemes": schemes,
    "reproduce": reproduce,
    "doctor": doctor,
    "demo": demo,
}.items():
    app.command(_name)(friendly(_module.command))

rtl.command("report")(friendly(resources_report.command))
app.add_typer(rtl, name="rtl")
