"""results/<study>.md and its plots, made from results/<study>.jsonl alone: no figure in them was typed."""

from __future__ import annotations

from pathlib import Path

from subbyte.study import expected
from subbyte.study.plots import plot_variants
from subbyte.study.rows import TRAINED, RowFile
from subbyte.study.select import Row, differences, diverged, ordered, values, where
from subbyte.study.statistics import CONFIDENCE, Interval, interval
from subbyte.study.study import Study, StudyError
from subbyte.study.tables import Table
from subbyte.train.checkpoint import write_text
from subbyte.train.folder import hold

NO_PLOTS = "\nNo plots: matplotlib is not installed (pip install 'subbyte[plot]').\n"


def summarize(study: Study, out: Path) -> Path:
    """Writes <study>.md and <study>-*.png beside the rows; the path of the page. StudyError without rows.

    Where another process is at it, that one writes.
    """
    rows_file = RowFile(out / f"{study.name}.jsonl")
    rows = rows_file.read()
    if not rows:
        raise StudyError(f"{rows_file.path} has no rows yet: run the study first")
    page = out / f"{study.name}.md"
    with hold(rows_file.path) as mine:
        if mine:
            write_text(page, markdown(study, rows) + _plots(study, rows, out / study.name))
    return page


def markdown(study: Study, rows: list[Row]) -> str:
    """The page without its plots."""
    parts = [f"# {study.name}: {study.title}", ""]
    if study.notes:
        parts += [study.notes.strip(), ""]
    parts += [f"Made by `subbyte reproduce {study.name} --report` from {study.name}.jsonl.", ""]
    parts += [table.markdown() for table in tables(study, rows)]
    parts.append(_sources(rows))
    return "\n".join(parts)


def tables(study: Study, rows: list[Row]) -> list[Table]:
    """Verdicts, variants by group, and the study's own."""
    found = [expected.table(study.expected, rows)] if study.expected else []
    if study.metric:
        found += [variant_table(study, rows, group) for group in ordered(rows, "group")]
    return [*found, *study.tables(rows)]


def variant_table(study: Study, rows: list[Row], group: str) -> Table:
    """A line for each variant of a group: its mean, its paired difference to the baseline, the worst seed."""
    rows = where(rows, group=group)
    headings = ["variant", "seeds", f"{study.metric} ({study.unit})", f"minus {study.baseline}", "worst seed"]
    headings += [column.heading for column in study.columns] + ["minutes"]
    lines = []
    for variant in ordered(rows, "variant"):
        measured = where(rows, variant=variant)
        found = where(measured, metric=TRAINED)
        deltas = [] if variant == study.baseline else differences(rows, variant, study.baseline, group)
        cells = [variant, str(len(found)), _mean(values(found), study.factor)]
        if diverged(found):
            cells[2] += f"{' ' if cells[2] else ''}{diverged(found)} diverged"
        cells += [_mean(deltas, study.factor), f"{min(deltas) * study.factor:+.2f}" if deltas else ""]
        cells += [_mean(values(measured, c.field), c.factor, c.digits) for c in study.columns]
        cells.append(_mean([s / 60 for s in values(found, "seconds")], 1, 1, plain=True))
        lines.append(cells)
    text = (
        f"Means over seeds, ± half of the {CONFIDENCE:.0%} interval (Student's t); differences are paired by seed. "
        "Minutes are those of a machine that may have had other work."
    )
    return Table(group or "Variants", headings, lines, text)


def _mean(numbers: list[float], factor: float, digits: int = 2, plain: bool = False) -> str:
    if not numbers:
        return ""
    i = interval(numbers)
    return (Interval(i.mean, None, i.n) if plain else i).text(factor, digits)


def _plots(study: Study, rows: list[Row], prefix: Path) -> str:
    """Draws; gives the lines of Markdown that show them."""
    try:
        files = []
        if study.metric:
            files += plot_variants(study, rows, prefix)
        if study.plots is not None:
            files += study.plots(rows, prefix)
    except ImportError:
        return NO_PLOTS
    return "".join(f"\n![{file.stem}]({file.name})\n" for file in files)


def _sources(rows: list[Row]) -> str:
    """Where the rows come from."""
    lines = ["## Sources", ""]
    for what, field in (("commands", "command"), ("commits", "commit"), ("machines", "machine")):
        found = sorted({str(row[field]) for row in rows if row.get(field)})
        lines.append(f"- {what}: " + "; ".join(f"`{value}`" for value in found))
    lines += [f"- {row['variant']}, seed {row['seed']}: {row['note']}" for row in rows if row.get("note")]
    return "\n".join([*lines, ""])
