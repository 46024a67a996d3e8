"""Command-line options that several commands share, and reading a --scheme."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from subbyte.scheme import Scheme

_WIDTH_OFF_TERMINAL = 140  # wide enough for every table; rich would take 80 columns

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder written by `subbyte train`.")]
CheckpointOption = Annotated[str, typer.Option("--checkpoint", help="Which checkpoint: last or best.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:<number>.")]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="Folder of the data sets; digits needs none. Default: $SUBBYTE_DATA, or else ./data."
    ),
]
DownloadOption = Annotated[
    bool, typer.Option("--download", help="Fetch the data set from its official place if it is missing.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def read_scheme(text: str) -> tuple[Scheme, str]:
    """The scheme called `text`, or the one in the .json file at that path; and a short name for it."""
    from subbyte.scheme import Scheme

    if not text.endswith(".json"):
        return Scheme.from_name(text), text
    path = Path(text)
    if not path.is_file():
        raise ValueError(f"--scheme {text}: there is no such file")
    try:
        return Scheme.from_json(path.read_text(encoding="utf-8")), path.stem
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"--scheme {text}: {error}") from error


def make_console() -> Console:
    """A console on stdout whose tables keep their width in files and pipes."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH_OFF_TERMINAL)
