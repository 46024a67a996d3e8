"""Words of error messages that every floor uses."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(word: object, known: Iterable[str]) -> str:
    """' (did you mean ...?)' or nothing.

    >>> closest("Cifar", ["cifar10", "digits"]), closest("xyz", ["digits"])
    (" (did you mean 'cifar10'?)", '')
    """
    of_lower = {name.lower(): name for name in known}
    match = difflib.get_close_matches(str(word).lower(), list(of_lower), n=1, cutoff=0.5)
    return f" (did you mean {of_lower[match[0]]!r}?)" if match else ""


def unknown(what: str, word: object, known: Iterable[str]) -> str:
    """A message about a name that does not exist: the closest that does, and all of them.

    >>> unknown("task", "cifar11", ["digits", "cifar10"])
    "unknown task 'cifar11' (did you mean 'cifar10'?); known are digits, cifar10"
    """
    names = list(known)
    return f"unknown {what} {word!r}{closest(word, names)}; known are {', '.join(names)}"
