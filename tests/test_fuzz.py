"""The fuzzer itself: a short run finds no difference and reaches kernels on every ISA; planted faults are found."""

from __future__ import annotations

import ctypes
import signal
from typing import Any

import pytest
import torch

from fuzz import run
from fuzz.run import Finding, Tally, fuzzed_ops, run_case
from subbyte.backends import _native, cpu

pytestmark = pytest.mark.skipif(bool(cpu.available()), reason=cpu.available())

CASES = 60  # for each op


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("op", fuzzed_ops())
def test_a_few_random_calls_equal_the_reference_on_every_isa(op: str) -> None:
    tally = Tally()
    for case in range(CASES):
        run_case(0, case, tally, op)
    ran = sum(runs for kernel, runs in tally.kernels.items() if "not covered" not in kernel)
    assert ran >= CASES * len(_native.isas()) / 3, tally.kernels


def run_cases(seed: int, op: str) -> None:
    for case in range(100):
        run_case(seed, case, Tally(), op)


def test_a_planted_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = cpu.pack_codes

    def wrong(codes: torch.Tensor, bits: int) -> torch.Tensor:
        packed = honest(codes, bits)
        if packed.numel() > 50:  # only where it is long
            packed[50] ^= 1
        return packed

    monkeypatch.setattr(cpu, "pack_codes", wrong)
    with pytest.raises(Finding, match=r"(?s)pack_codes on .*1 of \d+ differ; at \[50\].*again: .*--seed 3 --case \d+"):
        run_cases(3, "pack_codes")


def test_an_argument_that_is_written_to_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = cpu.amax

    def wrong(x: torch.Tensor, axis: int) -> torch.Tensor:
        r = honest(x, axis)
        if x.numel():
            x.view(-1)[0] += 1 if x.is_contiguous() else 0
        return r

    monkeypatch.setattr(cpu, "amax", wrong)
    with pytest.raises(Finding, match="an argument was written to"):
        run_cases(0, "amax")


def _crash(*arguments: Any) -> None:
    arguments[-1].value = 17
    ctypes.string_at(0)


def test_a_crash_says_which_case_it_was(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(run, "_child", _crash)
    assert run.main(["--seed", "5"]) == 1
    said = capfd.readouterr().out
    assert f"FOUND: the process ended with {-signal.SIGSEGV}" in said
    assert "again: python tests/fuzz --seed 5 --case 17" in said
