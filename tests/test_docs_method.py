"""docs/method.md says what results/*.jsonl say, and docs/results.html is made of results/*.md."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from subbyte.recipes import studies

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "method_docs.py"


def test_the_tables_are_those_of_the_results():
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_typed_figure_does_not_survive():
    script = runpy.run_path(str(SCRIPT))
    page = (ROOT / "docs" / "method.md").read_text()
    forged = page.replace("<= 1.3", "<= 1.9")
    assert forged != page
    assert script["filled"](forged) == page
    with pytest.raises(SystemExit, match="has no table 'nothing'"):
        script["filled"]("<!-- theory: nothing -->\n<!-- /theory: nothing -->")


def test_the_page_names_every_study_and_each_setting():
    page = (ROOT / "docs" / "method.md").read_text()
    for name, study in studies().items():
        assert f"**{name}**" in page
        assert f"epochs = `{study.config.epochs}`" in page


def test_the_page_of_results_has_every_study_as_it_is_in_the_files():
    from subbyte.study.page import page

    html = (ROOT / "docs" / "results.html").read_text()
    files = [file for name in studies() if (file := ROOT / "results" / f"{name}.md").is_file()]
    assert files
    for file in files:
        section = page([file]).partition("<section")[2].partition("</section>")[0]
        assert section in html, f"{file.name} changed: make results"
