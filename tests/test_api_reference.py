"""docs/api is what the docstrings say, every public name has one, and the script that makes it tells both apart."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import griffe
import pytest

import subbyte as sb

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("api_reference", ROOT / "scripts" / "api_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_current(reference) -> None:
    there = {path.name: path.read_text() for path in reference.FOLDER.glob("*.md")}
    assert there == reference.pages(), f"run {reference.COMMAND}"


def test_every_public_name_has_a_docstring(reference) -> None:
    assert reference.undocumented(reference.load()) == []


def test_every_name_of_the_package_is_on_a_page(reference) -> None:
    page = (reference.FOLDER / "subbyte.md").read_text()
    names = [name for name in sb.__all__ if not inspect.ismodule(getattr(sb, name))]
    assert len(names) > 20
    assert [n for n in names if f"`{n}`" not in page and f"## {n}\n".replace("_", r"\_") not in page] == []


def test_what_lacks_a_docstring_is_found(reference, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        '"""A package."""\n__all__ = ["good", "Bad"]\n'
        'def good():\n    """It does."""\n'
        'class Bad:\n    """It has a method without one."""\n    def run(self): ...\n    def _own(self): ...\n'
    )
    with griffe.temporary_visited_module(source, module_name="subbyte") as package:
        monkeypatch.setattr(reference, "PAGES", ("subbyte",))
        assert reference.undocumented(package) == ["subbyte.Bad.run"]


@pytest.mark.parametrize(
    ("docstring", "markdown"),
    [
        ("s = R / Q * 2", r"s = R / Q \* 2"),
        ("two\nlines with `a_b`", "two lines with `a_b`"),
        (">>> 1 + 1\n2", "```python\n>>> 1 + 1\n2\n```"),
        ("x     the input\nbits  of it", "```text\nx     the input\nbits  of it\n```"),
    ],
)
def test_a_docstring_as_markdown(reference, docstring: str, markdown: str) -> None:
    assert list(reference.text(docstring)) == [markdown]
