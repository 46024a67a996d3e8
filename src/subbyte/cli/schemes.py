"""`subbyte schemes`."""

from __future__ import annotations

from typing import Annotated

import typer

from subbyte.cli.options import JsonOption, make_console, read_scheme


def command(
    name: Annotated[
        str | None,
        typer.Argument(help="A named recipe or a .json file. Without it, the names."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print a recipe with every bit in it, as a table or as JSON to edit and give to --scheme."""
    import json

    from subbyte.scheme import Scheme

    if name is None:
        typer.echo(json.dumps(list(Scheme.names())) if as_json else "\n".join(Scheme.names()))
        return
    scheme, _ = read_scheme(name)
    if as_json:
        typer.echo(scheme.to_json())
    else:
        make_console().print(scheme.table())
