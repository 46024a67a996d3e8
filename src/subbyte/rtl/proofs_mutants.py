"""Mutants: small faults put into a unit by yosys (`mutate`), to see that the tests' stimulus catches each of them.

A mutant that behaves as the original under the stimulus must be PROVED to be the same circuit, by SAT over enough
cycles; otherwise the tests have a hole. The proof is complete for the elements: their pipeline holds the last few
inputs, and draining loads the accumulator with any value, so every state is reached within PROOF_CYCLES.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .gatesim import Ports, Step, run_icarus
from .synth import SynthesisError, run_yosys, to_rtlil

PROOF_CYCLES = 7

_PREPARE = ["read_rtlil in.il", "proc", "flatten", "opt -full", "memory_map", "opt -full", "design -save base"]


def list_mutations(component: Any, n: int, seed: int) -> list[str]:
    """n mutations of a component as yosys commands, spread over its cells."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "in.il").write_text(to_rtlil(component))
        run_yosys([*_PREPARE, f"mutate -list {n} -seed {seed} -o list.txt"], path)
        return (path / "list.txt").read_text().split("\n")[:-1]


def mutant_sources(component: Any, mutations: Sequence[str]) -> list[str]:
    """Verilog of the original (module `top`) and of each mutant (modules mutant_0, mutant_1...)."""
    commands = [*_PREPARE, "write_verilog -noattr top.v"]
    for i, mutation in enumerate(mutations):
        name = f"mutant_{i}"
        commands += ["design -load base", mutation, f"rename top {name}", f"write_verilog -noattr {name}.v"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "in.il").write_text(to_rtlil(component))
        run_yosys(commands, path)
        return [(path / f"{name}.v").read_text() for name in ("top", *_names(mutations))]


def _names(mutations: Sequence[str]) -> list[str]:
    return [f"mutant_{i}" for i in range(len(mutations))]


def survivors(component: Any, mutations: Sequence[str], steps: Sequence[Step]) -> list[str]:
    """The mutations that the stimulus does not tell from the original, cycle by cycle, in Icarus."""
    sources = mutant_sources(component, mutations)
    words = run_icarus(Ports.of(component), steps, sources, ("top", *_names(mutations)))
    return [m for i, m in enumerate(mutations) if all(row[0] == row[1 + i] for row in words)]


def is_equivalent(component: Any, mutation: str, cycles: int = PROOF_CYCLES) -> bool:
    """Whether no input sequence of that many cycles from reset tells the mutant from the original."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "in.il").write_text(to_rtlil(component))
        commands = [
            *_PREPARE,
            "copy top gate",
            mutation.replace("-module top", "-module gate"),
            "miter -equiv -flatten top gate miter",
            "hierarchy -top miter",
            "opt -full",
            f"sat -verify -prove trigger 0 -set-init-zero -tempinduct-baseonly -maxsteps {cycles} miter",
        ]
        try:
            run_yosys(commands, path)
        except SynthesisError as stopped:
            if "proof did fail" in str(stopped):
                return False
            raise
    return True
