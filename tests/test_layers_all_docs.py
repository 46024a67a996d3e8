"""The page about layers runs, and the table of layers x bits x quantizers is what the layers do."""

import doctest
import importlib.util
import sys
from pathlib import Path

import pytest

import subbyte as sb

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("layer_table", ROOT / "scripts" / "layer_table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up the names of its annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_examples_of_the_page_run():
    registered = dict(sb.nn.REGISTRY)
    try:
        result = doctest.testfile(str(ROOT / "docs" / "layers.md"), module_relative=False)
    finally:
        sb.nn.REGISTRY.clear()
        sb.nn.REGISTRY.update(registered)
    assert result.failed == 0
    assert result.attempted > 15


def test_the_table_is_current(table):
    assert table.PAGE.read_text() == table.page(), "run python scripts/layer_table.py"


def test_the_table_has_every_layer(table):
    in_table = {row.layer for row in table.PRODUCT_ROWS + table.NORM_ROWS}
    own = {c.__name__ for c in sb.nn.REGISTRY.values() if c.__module__.startswith("subbyte.")}
    assert {n for n in own if not n.startswith("Lazy")} <= in_table


def test_every_layer_of_the_registry_is_named_on_the_page():
    text = (ROOT / "docs" / "layers.md").read_text()
    for cls in sb.nn.REGISTRY.values():
        family = cls.__name__[:-2] if cls.__name__.endswith("d") and cls.__name__[-2].isdigit() else cls.__name__
        assert family.removeprefix("Lazy") in text
