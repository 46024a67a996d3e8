"""Errors for people: one or two lines and an exit code instead of a traceback, unless --traceback asks for it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

TracebackOption = Annotated[bool, typer.Option("--traceback", help="Show the whole traceback of an error.")]

BAD_INPUT = 2


def _exit_code(error: Exception) -> int | None:
    """The exit code of an error that a user can mend; None for a defect of subbyte."""
    from subbyte.data import DataError
    from subbyte.ops import BackendError

    mendable = (ValueError, OSError, ImportError, DataError, BackendError)
    return getattr(error, "exit_code", BAD_INPUT if isinstance(error, mendable) else None)


def friendly(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the --traceback flag to a command and turns the errors that a user can mend into `error: ...` on stderr.

    Whatever else is raised is a defect of subbyte and keeps its traceback.
    """

    @functools.wraps(command)
    def wrapper(*, traceback: bool, **arguments: Any) -> None:
        try:
            command(**arguments)
        except typer.Exit:
            raise
        except Exception as error:
            code = None if traceback else _exit_code(error)
            if code is None:
                raise
            typer.secho(f"error: {error}", err=True, fg="red")
            raise typer.Exit(code) from error

    # typer reads the flags from the signature, which must therefore show the added one.
    flag = inspect.Parameter("traceback", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=TracebackOption)
    parameters = [*inspect.signature(command, eval_str=True).parameters.values(), flag]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper
