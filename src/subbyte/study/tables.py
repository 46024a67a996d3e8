"""Table and Column: how figures are laid out. A Table gives Markdown; the page of results is made of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A further column of a study's table: the mean of `field` over a variant's rows, times `factor`."""

    field: str
    heading: str
    factor: float = 1.0
    digits: int = 2


@dataclass(frozen=True)
class Table:
    """A heading, a line of text, and cells."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: str = ""

    def markdown(self) -> str:
        """The table under a heading of the second level.

        >>> print(Table("bits", ["w", "loss"], [["4", "0.3"]]).markdown())
        ## bits
        <BLANKLINE>
        | w | loss |
        |---|---|
        | 4 | 0.3 |
        <BLANKLINE>
        """
        lines = [f"## {self.title}", ""]
        if self.text:
            lines += [self.text, ""]
        lines += [_line(self.headings), "|" + "---|" * len(self.headings), *map(_line, self.rows), ""]
        return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
