"""The studies, one file each: Config on top, EXPECTED below it, the runs, and a Study that holds them.

They lie inside the package so that `subbyte reproduce` finds them in an installed wheel, too. A new file with a STUDY
is a new study: the folder is scanned, there is no list.
"""

from __future__ import annotations

import importlib
import pkgutil

from subbyte.study.study import Study, StudyError
from subbyte.wording import unknown


def studies() -> dict[str, Study]:
    """Every study by name."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    found = [module.STUDY for module in modules if hasattr(module, "STUDY")]
    return {study.name: study for study in sorted(found, key=lambda study: study.name)}


def find(name: str) -> Study:
    """The study of that name; StudyError with the closest one for an unknown name."""
    known = studies()
    if name not in known:
        raise StudyError(unknown("study", name, known))
    return known[name]
