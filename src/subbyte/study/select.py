"""Choosing rows: those of a variant, pairs by seed, groups in their order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]


def ordered(rows: Iterable[Row], field: str) -> list[Any]:
    """The different values of a field, in the order in which they first occur.

    >>> ordered([{"variant": "b"}, {"variant": "a"}, {"variant": "b"}], "variant")
    ['b', 'a']
    """
    return list(dict.fromkeys(row.get(field) for row in rows))


def where(rows: Iterable[Row], **fields: Any) -> list[Row]:
    """The rows whose fields have these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in fields.items())]


def values(rows: Iterable[Row], field: str = "value") -> list[float]:
    """The finite numbers in that field."""
    return [row[field] for row in rows if isinstance(row.get(field), (int, float)) and math.isfinite(row[field])]


def differences(rows: Sequence[Row], variant: str, baseline: str, group: str, field: str = "value") -> list[float]:
    """variant - baseline for each seed that both have, within a group; a run that diverged has no value."""
    found = where(rows, group=group)
    of_seed = {
        name: {row["seed"]: row[field] for row in where(found, variant=name) if values([row], field)}
        for name in (variant, baseline)
    }
    shared = sorted(set(of_seed[variant]) & set(of_seed[baseline]))
    return [of_seed[variant][seed] - of_seed[baseline][seed] for seed in shared]


def diverged(rows: Iterable[Row]) -> int:
    """How many of these runs ended in numbers that are not finite."""
    return sum("diverged" in row for row in rows)
