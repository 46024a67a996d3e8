"""The compiled library: found, loaded and given torch's thread pool; and the choice of an ISA.

Nothing here knows an op: the modules _cpu_*.py declare the functions that they call. What is not here either: how the
library is compiled (hatch_build.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

PATH = Path(__file__).resolve().parent.parent / "_lib" / "libsubbyte.so"
ISA_VARIABLE = "SUBBYTE_ISA"

POINTER = ctypes.c_void_p
INT64 = ctypes.c_int64
INT = ctypes.c_int
FLOAT = ctypes.c_float
DOUBLE = ctypes.c_double
NAME = ctypes.c_char_p
"""Every exported kernel returns the name of what ran, or None where it does not cover the call."""


def _load() -> tuple[ctypes.CDLL | None, str]:
    if not PATH.exists():
        return None, f"{PATH.name} is not built: install with a C++ compiler, or run python hatch_build.py"
    # In a checkout: what a function takes may have changed since, which no loader notices.
    sources = PATH.parents[3] / "csrc"
    if sources.is_dir() and max(file.stat().st_mtime for file in sources.iterdir()) > PATH.stat().st_mtime:
        return None, f"{PATH.name} is older than its sources in {sources}: run python hatch_build.py"
    try:
        return ctypes.CDLL(str(PATH)), ""
    except OSError as error:
        return None, f"{PATH.name} does not load: {error}"


def _share_threads(library: ctypes.CDLL) -> str:
    """Hand torch's OpenMP runtime to the library -> its path, or "" when there is none and kernels run on one thread.

    Found among the files that the process has mapped: linking one would bring in a second pool that spins against it.
    """
    try:
        mapped = set(re.findall(r"/\S*lib(?:gomp|iomp5|omp)[-.\w]*\.so[.\d]*", Path("/proc/self/maps").read_text()))
    except OSError:
        return ""
    home = str(Path(torch.__file__).parent)
    for path in sorted(mapped, key=lambda p: (not p.startswith(home), p)):
        try:
            runtime = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            start, number = runtime.GOMP_parallel, runtime.omp_get_thread_num
        except (OSError, AttributeError):
            continue
        library.sb_set_parallel(ctypes.cast(start, POINTER), ctypes.cast(number, POINTER))
        return path
    return ""


lib, reason = _load()
"""The library, or None and why."""

thread_runtime = ""
"""Path of the OpenMP runtime whose threads the kernels use; "" for single-threaded."""

if lib is not None:
    lib.sb_set_parallel.argtypes = [POINTER, POINTER]
    lib.sb_set_parallel.restype = None
    lib.sb_isa_name.restype = NAME
    lib.sb_force_isa.argtypes = [NAME]
    thread_runtime = _share_threads(lib)


def function(name: str, *arguments: type) -> Callable[..., bytes | None]:
    """The exported kernel `name` with these argument types; returning the name of what ran. RuntimeError without it."""
    if lib is None:
        raise RuntimeError(reason)
    entry = getattr(lib, name)
    entry.argtypes, entry.restype = list(arguments), NAME
    return entry


def isas() -> tuple[str, ...]:
    """The ISAs that this machine has, plainest first."""
    found = []
    i = 0
    while lib is not None and (name := lib.sb_isa_name(i)) is not None:
        if lib.sb_isa_present(i):
            found.append(name.decode())
        i += 1
    return tuple(found)


def force_isa(name: str | None) -> None:
    """Use no ISA above `name`; None restores the best. ValueError for one that does not exist or is not here."""
    if lib is None:
        raise RuntimeError(reason)
    code = lib.sb_force_isa((name or "").encode())
    if code:
        what = "does not exist" if code == 1 else "is not on this machine"
        raise ValueError(f"ISA {name!r} {what}; here are: {', '.join(isas())}")


@contextlib.contextmanager
def forced_isa(name: str | None) -> Iterator[None]:
    """force_isa inside the block, and afterwards what the environment asks for. Process-wide."""
    force_isa(name)
    try:
        yield
    finally:
        force_isa(os.environ.get(ISA_VARIABLE))


def best_kernel(op: str) -> str:
    """The kernel of the table's `op` that a call takes now. KeyError for an op that has none."""
    name = function("sb_best_kernel", NAME)(op.encode())
    if name is None:
        raise KeyError(op)
    return name.decode()


def kernels() -> list[tuple[str, str, str]]:
    """(op, kernel, ISA) of everything in the library, for tables and tests."""
    if lib is None:
        return []
    columns = [function(f"sb_kernel_{column}", INT) for column in ("op", "name", "isa")]
    rows: list[tuple[str, str, str]] = []
    while (row := [column(len(rows)) for column in columns])[0] is not None:
        op, kernel, isa = (cell.decode() for cell in row if cell is not None)
        rows.append((op, kernel, isa))
    return rows


if lib is not None and os.environ.get(ISA_VARIABLE):
    force_isa(os.environ[ISA_VARIABLE])
