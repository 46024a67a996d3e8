"""Backends: one file each, found by scanning this folder; adding one edits nothing else.

A backend is a module with
  NAME, PRIORITY       its name, and its place in the automatic choice (highest first)
  available()          "" when it can run on this machine, otherwise the reason why not
  one function per op that it covers, named and called as the op in subbyte/ops; it returns NotImplemented for
  arguments that it does not cover (the next backend, or the reference, then runs; when it was forced, an error)
  AUTOMATIC            optional: False for a backend that only runs when it is forced
  EXPECTED             optional: True for one that every installation should have; a warning says where it cannot run
  ran: dict[str, str]  optional: op -> the name of the kernel that its last call ran

Every function equals the body of its op bit for bit.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import warnings
from types import ModuleType


@functools.cache
def discover() -> dict[str, ModuleType]:
    """Every backend in this folder, by name, highest priority first; those that cannot run here are included."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    modules = [importlib.import_module(f"{__name__}.{n}") for n in names]
    return {m.NAME: m for m in sorted(modules, key=lambda m: -m.PRIORITY)}


@functools.cache
def usable() -> tuple[ModuleType, ...]:
    """Those that the automatic choice may take on this machine, highest priority first.

    Warns, once in a process, of an expected one that cannot run: what stands in for it is many times slower.
    """
    automatic = [m for m in discover().values() if getattr(m, "AUTOMATIC", True)]
    for missing in [m for m in automatic if getattr(m, "EXPECTED", False) and m.available()]:
        warnings.warn(
            f"subbyte's {missing.NAME} kernels cannot run here ({missing.available()}); the reference runs in their"
            " place, with the same results but many times slower. SUBBYTE_BACKEND=reference chooses it silently.",
            stacklevel=2,
        )
    return tuple(m for m in automatic if not m.available())
