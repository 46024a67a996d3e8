"""narrow_codes in C++ equals its reference on every code, and is the kernel that ran."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest
import torch

from subbyte import backends, ops
from subbyte.numerics import IntFormat
from subbyte.ops.quantize import narrow_codes

pytestmark = pytest.mark.skipif("cpu" not in {b.NAME for b in backends.usable()}, reason="no C++ library")


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(2, 8))
def test_equals_the_reference(bits: int, signed: bool) -> None:
    fmt = IntFormat(8, signed)
    every = torch.arange(fmt.qmin, fmt.qmax + 1).to(fmt.dtype)
    many = every.repeat(700)[3:]  # several tasks, an odd length, an odd address
    images = many[: 2 * 5 * 3 * 7].view(2, 5, 3, 7)
    for codes in (every, many, images.to(memory_format=torch.channels_last), images[:, ::2], every[:0]):
        got = narrow_codes(codes, 8 - bits, bits, signed)
        assert ops.last_kernel["narrow_codes"] == "narrow_codes_portable"
        with ops.use_backend("reference"):
            want = narrow_codes(codes, 8 - bits, bits, signed)
        assert torch.equal(got, want)
        assert got.stride() == want.stride()


def test_an_older_library_is_told_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from subbyte.backends import _native, cpu

    def missing() -> None:
        raise AttributeError("undefined symbol: sb_new")

    before = _native.reason
    monkeypatch.setattr(importlib, "import_module", lambda name: missing())
    try:
        importlib.reload(cpu)
        assert "older than this package (undefined symbol: sb_new)" in cpu.available()
    finally:
        monkeypatch.undo()
        _native.reason = before
        importlib.reload(cpu)
    assert cpu.available() == ""


def test_a_library_older_than_its_sources_is_told_and_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from subbyte.backends import _native

    library, source = tmp_path / "src/subbyte/_lib/libsubbyte.so", tmp_path / "csrc/gemm.cc"
    for file in (library, source):
        file.parent.mkdir(parents=True)
    library.write_bytes(_native.PATH.read_bytes())
    source.touch()
    monkeypatch.setattr(_native, "PATH", library)
    os.utime(library, (1e9, 1e9))
    found, reason = _native._load()
    assert found is None
    assert "older than its sources" in reason
    assert "python hatch_build.py" in reason
    os.utime(source, (1e9, 1e9))
    assert _native._load()[0] is not None
