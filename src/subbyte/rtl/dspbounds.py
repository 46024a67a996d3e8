"""What two products in one DSP48E1 can hold: a bound on the schedule of a chunk. No hardware library is needed.

(a[2i+1] 2^S + a[2i]) b:  S = 25 - a_bits, the pre-adder's width; the low field of P is exact while |sum| < 2^(S-1)
"""

from __future__ import annotations

from .spec import BoundError, Spec

PRE_ADDER_BITS = 25


def field_bits(spec: Spec) -> int:
    """S, the width of the low field of P: the pre-adder must hold a 2^S."""
    return PRE_ADDER_BITS - spec.a_bits


def chunk_units(spec: Spec) -> int:
    """The largest sum of 2^left that a chunk may have.

    >>> from subbyte.rtl.spec import spec_for
    >>> chunk_units(spec_for(6, 4, "folded")), chunk_units(spec_for(4))
    (272, 21399)
    """
    return ((1 << (field_bits(spec) - 1)) - 1) // (spec.a.qmax * spec.b.qmax)


def require(spec: Spec, rows: int) -> None:
    """BoundError where a DSP tile of this unit does not exist."""
    if spec.lanes != 1 or spec.variant not in ("plain", "folded", "horner"):
        raise BoundError(f"a DSP tile is plain, folded or horner with 1 lane, not {spec.variant} with {spec.lanes}")
    if rows % 2:
        raise BoundError(f"a DSP tile packs two rows into a DSP: {rows} rows is odd")
    if chunk_units(spec) < 1 << (spec.groups - 1):
        raise BoundError(
            f"{spec} does not pack two to a DSP48E1: a chunk holds {chunk_units(spec)} units of 2^left, "
            f"one product at the largest left is {1 << (spec.groups - 1)}"
        )
