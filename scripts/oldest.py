"""Constraints that pin each library of pyproject.toml to the oldest version it allows, for pip install --constraint."""

from __future__ import annotations

import re
import sys
from pathlib import Path

USERS = ("dependencies", "plot", "images")
"""The lists of what users install; tools of development come as they are."""


def constraints(pyproject: str) -> list[str]:
    """'name==version' for each 'name>=version' of USERS; ValueError for a library without one."""
    pins = []
    for part in USERS:
        listed = re.search(rf"^{part} = \[(.*?)\]$", pyproject, re.MULTILINE | re.DOTALL)
        if listed is None:
            raise ValueError(f"pyproject.toml has no list {part}")
        for requirement in re.findall(r'"(.*?)"', listed[1]):
            floor = re.match(r"([A-Za-z0-9-]+)>=([0-9.]+)", requirement)
            if floor is None:
                raise ValueError(f"{part}: {requirement!r} has no oldest version, as in 'name>=1.0'")
            pins.append(f"{floor[1]}=={floor[2]}")
    return pins


if __name__ == "__main__":
    sys.stdout.write("\n".join(constraints(Path("pyproject.toml").read_text())) + "\n")
