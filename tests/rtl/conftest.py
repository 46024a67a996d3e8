"""The slow hardware suite. `make rtl` runs it; `make test` does not collect it.

A missing program is an error here and not a skip: the suite says that everything was checked.
"""

from __future__ import annotations

import os
import shutil

import pytest

collect_ignore_glob = [] if os.environ.get("SUBBYTE_RTL_SUITE") else ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def _programs() -> None:
    missing = [name for name in ("iverilog", "vvp", "verilator") if shutil.which(name) is None]
    if missing:
        pytest.exit(f"the hardware suite needs {', '.join(missing)}: apt-get install iverilog verilator", 3)
