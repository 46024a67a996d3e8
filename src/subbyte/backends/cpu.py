"""The CPU backend: the C++ kernels of csrc/, one wrapper for each op in the modules _cpu_*.py beside this file.

Each of those modules lists its functions in OPS; adding one edits nothing here. A wrapper checks what its kernel takes
(device, dtype, layout) and returns NotImplemented for the rest.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from . import _native
from ._cpu_call import ran

__all__ = ["EXPECTED", "NAME", "PRIORITY", "available", "ran"]

NAME = "cpu"
PRIORITY = 10
EXPECTED = True


def available() -> str:
    """ "" when the library is loaded, otherwise why it is not."""
    return _native.reason


def _find_wrappers() -> None:
    for found in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if found.name.startswith("_cpu_"):
            module = importlib.import_module(f"{__package__}.{found.name}")
            globals().update({f.__name__: f for f in getattr(module, "OPS", ())})


if _native.lib is not None:
    try:
        _find_wrappers()
    except AttributeError as error:  # a checkout that moved on, with the library of an earlier one
        _native.reason = f"{_native.PATH.name} is older than this package ({error}): run python hatch_build.py"
