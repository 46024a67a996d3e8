"""The sanitizers work: faults planted through the C ABI of the real library are found. Part of `make sanitize`.

Each test starts a runner of its own, calls a kernel against its contract, and reads the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from native_runner import Library
from subbyte.backends import _native

pytestmark = pytest.mark.skipif("not config.getoption('runner', None)", reason="needs a build with a sanitizer")


POINTER, INT64, INT = _native.POINTER, _native.INT64, _native.INT
TYPES = {
    "sb_pack_codes": (POINTER, INT64, INT, POINTER, INT),
    "sb_norm_apply": (POINTER, INT, INT64, POINTER, *(POINTER, INT64, INT64) * 4, INT64, INT, POINTER, POINTER, INT),
}


@pytest.fixture
def report_of(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., str]]:
    """Makes a call that has to end its runner -> what the sanitizer said."""
    said = tmp_path / "report"
    with said.open("wb") as file:
        library = Library(request.config.getoption("--runner"), file)
    monkeypatch.setattr(_native, "lib", library)

    def report(name: str, *arguments: int) -> str:
        with pytest.raises(pytest.exit.Exception):
            _native.function(name, *TYPES[name])(*arguments)
        assert library.process.wait() != 0
        return said.read_text()

    yield report
    library.process.kill()


def test_memory_read_beyond_the_end(report_of: Callable[..., str]) -> None:
    codes, packed = torch.zeros(1000, dtype=torch.int8), torch.zeros(4000, dtype=torch.uint8)
    report = report_of("sb_pack_codes", codes.data_ptr(), 1001, 4, packed.data_ptr(), 1)
    assert "AddressSanitizer: use-after-poison" in report
    assert "READ of size" in report
    assert "csrc/pack" in report


def test_memory_write_beyond_the_end(report_of: Callable[..., str]) -> None:
    codes, packed = torch.zeros(1000, dtype=torch.int8), torch.zeros(499, dtype=torch.uint8)
    report = report_of("sb_pack_codes", codes.data_ptr(), 1000, 4, packed.data_ptr(), 1)
    assert "AddressSanitizer: use-after-poison" in report
    assert "WRITE of size" in report
    assert "csrc/pack" in report


def test_undefined_shift(report_of: Callable[..., str]) -> None:
    q, k, y, total = (torch.ones(1, dtype=t) for t in (torch.int8, torch.int8, torch.float32, torch.int64))
    code, number = (q.data_ptr(), 1, 1), (torch.ones(1).data_ptr(), 1, 1)
    operands = (*number, *code, *number, *number)
    end = (1, 60, y.data_ptr(), k.data_ptr(), 1)  # 60 bits
    report = report_of("sb_norm_apply", q.data_ptr(), 1, 1, total.data_ptr(), *operands, *end)
    assert "runtime error: shift exponent 59 is too large" in report
    assert "csrc/norm_pass" in report


def test_race_of_an_output_that_overlaps_the_input(report_of: Callable[..., str]) -> None:
    codes = torch.zeros(1 << 24, dtype=torch.int8)
    report = report_of("sb_pack_codes", codes.data_ptr(), 1 << 24, 4, codes.data_ptr(), 2)
    assert "WARNING: ThreadSanitizer: data race" in report
    assert "csrc/pack" in report
