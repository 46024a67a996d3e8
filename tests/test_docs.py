"""The examples of the documentation run, and its links lead somewhere."""

from __future__ import annotations

import doctest
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from subbyte import backends
from subbyte.nn import REGISTRY
from subbyte.quantizers import Quantizer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture
def _registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a page adds of its own is gone afterwards."""
    monkeypatch.setattr(Quantizer, "registry", dict(Quantizer.registry))
    monkeypatch.setattr(backends, "__path__", list(backends.__path__))
    before = set(REGISTRY)
    yield
    for added in set(REGISTRY) - before:
        del REGISTRY[added]
    backends.discover.cache_clear()


EXAMPLES = {"quantizers": 7, "schemes": 20, "adding_your_own": 20, "optimizers": 8, "fusing": 7, "integer_only": 12}


@pytest.mark.usefixtures("_registries")
@pytest.mark.parametrize(("page", "examples"), EXAMPLES.items())
def test_the_examples_of_a_page_run(page: str, examples: int) -> None:
    if page == "optimizers":
        pytest.importorskip("bitsandbytes", reason="pip install 'subbyte[optim]'")
    result = doctest.testfile(str(ROOT / "docs" / f"{page}.md"), module_relative=False)
    assert result.failed == 0
    assert result.attempted > examples


def test_the_page_on_quantizers_names_every_one() -> None:
    page = (ROOT / "docs" / "quantizers.md").read_text()
    ours = [name for name, cls in Quantizer.registry.items() if cls.__module__.startswith("subbyte.")]
    assert len(ours) > 5
    assert not [name for name in ours if f"`{name}" not in page]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_the_python_of_the_readme_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
