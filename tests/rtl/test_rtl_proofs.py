"""Multipliers are exact for all operands: SAT up to 7 x 7 bits, every pair at 8 x 8; and mutants are caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from subbyte.rtl import units
from subbyte.rtl.gatesim import Ports, random_steps, run_icarus
from subbyte.rtl.proofs import SIGNED_PROOFS, UNSIGNED_PROOFS, multiplier_is_exact
from subbyte.rtl.proofs_mutants import is_equivalent, list_mutations, survivors
from subbyte.rtl.synth import to_verilog

pytestmark = pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")

MUTANTS = 80


@pytest.mark.parametrize("widths", SIGNED_PROOFS, ids=str)
def test_booth_multipliers_are_proved(widths: tuple[int, int]) -> None:
    assert multiplier_is_exact(*widths)


@pytest.mark.parametrize("widths", UNSIGNED_PROOFS, ids=str)
def test_significand_multipliers_are_proved(widths: tuple[int, int]) -> None:
    assert multiplier_is_exact(*widths, signed_operands=False)


def test_all_pairs_of_8_bit_operands() -> None:
    """An element that always drains zeros shows its registered product: acc <= a b + 0, two cycles after a and b."""
    unit = units.element(units.spec_for(8))
    pairs = [(a, b) for a in range(-128, 128) for b in range(-128, 128)]
    idle = {"double": 0, "left": 0, "drain": 1, "d_in": 0}
    steps = [{"a": a & 0xFF, "b": b & 0xFF, **idle} for a, b in [*pairs, (0, 0), (0, 0)]]
    words = run_icarus(Ports.of(unit), steps, [to_verilog(unit)])
    assert [word for (word,) in words[unit.latency - 1 :]] == [(a * b) & 0xFFFFFFFF for a, b in pairs]


ELEMENTS: dict[str, Callable[[], Any]] = {
    "int4": lambda: units.element(units.spec_for(4)),
    "int4-horner": lambda: units.element(units.spec_for(4, 4, "horner")),
    "int6-horner": lambda: units.element(units.spec_for(6, 4, "horner")),
    "int4-folded": lambda: units.element(units.spec_for(4, 4, "folded")),
    "int4-product": lambda: units.element(units.spec_for(4, 4, "product")),
    "int4-tree": lambda: units.element(units.spec_for(4, 4, "tree", lanes=2)),
}


@pytest.mark.parametrize("name", ELEMENTS)
def test_every_mutant_is_caught_or_proved_to_be_the_same_circuit(name: str) -> None:
    make = ELEMENTS[name]
    mutations = list_mutations(make(), MUTANTS, seed=1)
    alive = survivors(make(), mutations, random_steps(make(), 600, 3, {"drain": 0.05}))
    assert len(mutations) == MUTANTS
    assert len(alive) <= MUTANTS // 8
    assert [m for m in alive if not is_equivalent(make(), m)] == []


def test_the_proof_of_equivalence_refuses_a_real_fault() -> None:
    make = ELEMENTS["int4-horner"]
    mutations = list_mutations(make(), 5, seed=2)
    alive = survivors(make(), mutations, random_steps(make(), 600, 3, {"drain": 0.05}))
    caught = [m for m in mutations if m not in alive]
    assert len(caught) >= 3
    assert not any(is_equivalent(make(), m) for m in caught)


def test_a_stimulus_without_boundaries_lets_mutants_live() -> None:
    """The catch is the stimulus's merit: without `double` and `drain` faults in both go unseen."""
    make = ELEMENTS["int4-horner"]
    mutations = list_mutations(make(), MUTANTS, seed=1)
    weak = random_steps(make(), 600, 3, {"drain": 0.0, "double": 0.0})
    assert len(survivors(make(), mutations, weak)) > len(
        survivors(make(), mutations, random_steps(make(), 600, 3, {"drain": 0.05}))
    )
