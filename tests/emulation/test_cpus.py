"""The emulator is the CPU that it claims to be, and runs the instructions that it is for. Part of `make test-emulated`.

Each test starts a runner of its own on tests/emulated_cpu.py.
"""

from __future__ import annotations

import ctypes
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from native_runner import Library
from subbyte import ops
from subbyte.backends import _cpu_products, _native

pytestmark = pytest.mark.skipif(
    "'emulated' not in (config.getoption('runner', None) or '')", reason="needs the emulator"
)

VNNI = {"avxvnni": "vex vpdpbusd", "avx512vnni": "evex vpdpbusd"}
"""ISA -> what emulated_cpu counts its product as."""


@pytest.fixture
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable]:
    """Starts the library on an emulator with these options, in the place of the one that other tests use."""
    started = []

    def library(*options: str) -> Library:
        *command, program, its_library = shlex.split(request.config.getoption("--runner"))
        with (tmp_path / "report").open("wb") as report:
            started.append(Library(shlex.join([*command, *options, program, its_library]), report))
        started[-1].sb_isa_name.restype = ctypes.c_char_p
        monkeypatch.setattr(_native, "lib", started[-1])
        return started[-1]

    yield library
    for each in started:
        each.process.kill()


@pytest.mark.parametrize(
    ("cpu", "isas"),
    [
        ("skylake_x", "portable avx2"),  # AVX-512 without VNNI
        ("tigerlake", "portable avx2 avx512vnni"),
        ("arrow_lake", "portable avx2 avxvnni"),
        ("sapphire_rapids", "portable avx2 avxvnni avx512vnni"),
    ],
)
def test_the_library_finds_what_the_cpu_has(start: Callable[..., Library], cpu: str, isas: str) -> None:
    start("--cpu", cpu)
    assert _native.isas() == tuple(isas.split())


@pytest.mark.parametrize("isa", VNNI)
def test_the_instructions_of_an_isa_are_executed(
    start: Callable[..., Library], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, isa: str
) -> None:
    """(16, 64) by (64, 32) is 16 * 64 * 32 products, of which a vpdpbusd makes 4 in each lane of 32 bits."""
    library = start("--count", str(tmp_path / "counts"))
    monkeypatch.setattr(_cpu_products, "_gemm", _native.function("sb_gemm", _native.POINTER, _native.INT))
    a, b = torch.full((16, 64), 200, dtype=torch.uint8), torch.full((64, 32), -127, dtype=torch.int8)
    with _native.forced_isa(isa), ops.use_backend("cpu"):
        y = torch.ops.subbyte.int_matmul(a, None, 8, False, 0, b, None, 8, True, 0)
    assert (y == 64 * 200 * -127).all()
    assert library.process.stdin is not None
    library.process.stdin.close()
    assert library.process.wait() == 0
    counts = json.loads((tmp_path / "counts").read_text())
    lanes = 16 if isa == "avx512vnni" else 8
    assert counts[VNNI[isa]] >= 16 * 64 * 32 // (4 * lanes)
    assert all(counts.get(name, 0) == 0 for other, name in VNNI.items() if other != isa)


def test_a_fault_ends_the_program_and_is_told(start: Callable[..., Library], tmp_path: Path) -> None:
    nowhere = 1 << 46
    library = start()
    with pytest.raises(pytest.exit.Exception):
        _native.function("sb_pack_codes", *(_native.POINTER, _native.INT64, _native.INT, _native.POINTER, _native.INT))(
            nowhere, 1000, 4, nowhere, 1
        )
    assert library.process.wait() != 0
    assert f"address {nowhere:#x}" in (tmp_path / "report").read_text()
