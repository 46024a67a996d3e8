"""Studies: runs paired by seed, their rows, and what the rows say. The studies themselves are in subbyte.recipes."""

from subbyte.study.expected import Expected, Figure, Verdict
from subbyte.study.rows import RowFile
from subbyte.study.runner import Place, Progress, execute, planned
from subbyte.study.select import Row
from subbyte.study.study import Job, Run, Study, StudyError, training
from subbyte.study.summary import summarize
from subbyte.study.tables import Column, Table

__all__ = [
    "Column",
    "Expected",
    "Figure",
    "Job",
    "Place",
    "Progress",
    "Row",
    "RowFile",
    "Run",
    "Study",
    "StudyError",
    "Table",
    "Verdict",
    "execute",
    "planned",
    "summarize",
    "training",
]
