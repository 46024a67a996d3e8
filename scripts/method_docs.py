"""Fills the tables of docs/method.md from results/*.jsonl and from the recipes: no figure there is typed.

    python scripts/method_docs.py           write the tables
    python scripts/method_docs.py --check   exit 1 if the page differs from what the results say

Between <!-- STUDY: TITLE --> and <!-- /STUDY: TITLE --> goes that table of the study's summary; between
<!-- settings --> and <!-- /settings --> every setting of every study. tests/test_docs_method.py runs the check.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

from subbyte.recipes import find, studies
from subbyte.study import RowFile, Study
from subbyte.study.summary import tables

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "method.md", ROOT / "results"


def table(name: str, title: str) -> str:
    """One table of a study, without its heading; or how to make it, where the study has no rows for it."""
    study = find(name)
    rows = RowFile(RESULTS / f"{name}.jsonl").read()
    found = {t.title: t for t in tables(study, rows)} if rows else {}
    if not rows or (title not in found and title in {run.group for run in study.runs(study.config)}):
        return f"Not run yet: `subbyte reproduce {name} --data-dir DIR`.\n"
    if title not in found:
        raise SystemExit(f"the study {name} has no table '{title}'; it has: {', '.join(found)}")
    lines = found[title].markdown().split("\n")[2:]  # without the heading
    return "\n".join(lines).strip() + f"\n\nMade by `subbyte reproduce {name} --data-dir DIR`.\n"


def settings() -> str:
    """A table for each study."""
    return "\n".join(_settings_of(study) for study in studies().values())


def _settings_of(study: Study) -> str:
    fields = dataclasses.asdict(study.config)
    cells = ", ".join(f"{name} = {_text(value)}" for name, value in fields.items())
    return f"- **{study.name}** ({study.title}): {cells}.\n"


def _text(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(_text, value)) + ")"
    return "all" if value is None else f"`{value}`"


def filled(text: str) -> str:
    """The page with every table made anew."""

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        study, _, title = name.partition(": ")
        body = settings() if name == "settings" else table(study, title)
        return f"<!-- {name} -->\n{body}<!-- /{name} -->"

    return re.sub(r"<!-- ([^/>][^>]*?) -->\n.*?<!-- /\1 -->", replace, text, flags=re.S)


def main() -> None:
    old = PAGE.read_text(encoding="utf-8")
    new = filled(old)
    if "--check" in sys.argv[1:]:
        raise SystemExit("docs/method.md differs from the results: run scripts/method_docs.py" if new != old else 0)
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
