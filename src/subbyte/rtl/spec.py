"""What a multiply-accumulate unit is, and what it can hold. No hardware library is needed here.

    acc = sum_k a[k] b[k] 2^left[k],   0 <= left[k] < groups

left = E - e(k) is the group's left shift. How a variant realises it:

    plain    groups = 1
    horner   the accumulator doubles at the boundary between two groups: k comes in order, largest left shift first
    folded   b << left at the array's edge, once for a row or column; any order; b is groups - 1 bits wider
    product  (a b) << left in each element: the literal reading of the formula, for comparison; any order
    tree     `lanes` products of one group are added, then shifted once; any order of such vectors
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..numerics import IntFormat, accumulator_bits, product_bound

VARIANTS = ("plain", "horner", "folded", "product", "tree")

MAX_GROUPS = 8
MAX_ACC_BITS = 48
"""The P register of a DSP48E1; LUT fabric could go further."""

MAX_SIDE = 64
"""Rows and columns of an array: beyond that a broadcast needs registers of its own."""

MULTIPLIERS = ("booth", "inferred")


class BoundError(ValueError):
    """A request that the unit cannot hold; the message states the bound."""


@dataclass(frozen=True)
class Spec:
    """One multiply-accumulate unit. BoundError, at construction, for what does not exist.

    a, b        formats of the operands
    groups      left shifts 0 .. groups - 1
    variant     one of VARIANTS
    acc_bits    width of the accumulator, two's complement
    lanes       products a cycle: more than 1 only for "plain", "horner" and "tree"
    multiplier  "booth" (radix 4, for LUT fabric) or "inferred" (left to the synthesiser: DSP blocks)

    >>> Spec(IntFormat(6), IntFormat(6), groups=4, variant="horner").max_k
    279329
    >>> Spec(IntFormat(6), IntFormat(6), groups=4, variant="horner").require_k(300_000)
    Traceback (most recent call last):
      ...
    subbyte.rtl.spec.BoundError: K = 300000 of s6 x s6 with 4 groups needs 33 accumulator bits, ...
    """

    a: IntFormat
    b: IntFormat
    groups: int = 1
    variant: str = "plain"
    acc_bits: int = 32
    lanes: int = 1
    multiplier: str = "booth"

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise BoundError(f"variant {self.variant!r}: there are {', '.join(VARIANTS)}")
        if self.multiplier not in MULTIPLIERS:
            raise BoundError(f"multiplier {self.multiplier!r}: there are {', '.join(MULTIPLIERS)}")
        if not 1 <= self.groups <= MAX_GROUPS:
            raise BoundError(f"{self.groups} groups: a unit has 1 to {MAX_GROUPS}")
        if self.variant == "plain" and self.groups != 1:
            raise BoundError(f"a plain unit has 1 group, not {self.groups}; use horner, folded or tree")
        if self.lanes < 1 or self.lanes & (self.lanes - 1):
            raise BoundError(f"{self.lanes} lanes: a power of two, so that the adder tree is full")
        if self.lanes > 1 and self.variant in ("folded", "product"):
            raise BoundError(f"a {self.variant} unit has 1 lane, not {self.lanes}; use tree for vectors of one group")
        least = accumulator_bits(self.a, self.b, self.lanes, self.groups - 1)
        if not least <= self.acc_bits <= MAX_ACC_BITS:
            raise BoundError(
                f"{self.acc_bits} accumulator bits: {self} needs {least} for one step, and {MAX_ACC_BITS} is the most"
            )

    def __str__(self) -> str:
        return f"{self.a} x {self.b} with {self.groups} group{'s' * (self.groups > 1)}"

    @property
    def a_bits(self) -> int:
        """Width of operand a as a two's-complement number: one bit more than an unsigned format has."""
        return self.a.bits + (not self.a.signed)

    @property
    def b_bits(self) -> int:
        """Width of operand b at the unit's input, before any shift."""
        return self.b.bits + (not self.b.signed)

    @property
    def element_b_bits(self) -> int:
        """Width of operand b inside a processing element: shifted already when folded."""
        return self.b_bits + (self.groups - 1 if self.variant == "folded" else 0)

    @property
    def left_bits(self) -> int:
        """Width of a left shift 0 .. groups - 1; at least 1, so that every unit has the port."""
        return max(1, (self.groups - 1).bit_length())

    @property
    def max_k(self) -> int:
        """The longest reduction whose every sum the accumulator holds, all groups at the largest left shift."""
        return ((1 << (self.acc_bits - 1)) - 1) // product_bound(self.a.qmax, self.b.qmax, 1, self.groups - 1)

    def require_k(self, k: int) -> None:
        """BoundError when a reduction of k can overflow the accumulator."""
        if not 1 <= k <= self.max_k:
            need = accumulator_bits(self.a, self.b, max(k, 1), self.groups - 1)
            raise BoundError(
                f"K = {k} of {self} needs {need} accumulator bits, the unit has {self.acc_bits}: K is 1 to {self.max_k}"
            )

    def plain(self) -> Spec:
        """The same unit without groups: what an overhead is measured against."""
        return replace(self, groups=1, variant="plain")


def spec_for(bits: int, groups: int = 1, variant: str = "plain", **rest) -> Spec:
    """A Spec with both operands signed, of `bits` bits.

    >>> spec_for(4, 4, "horner").max_k
    5478274
    """
    return Spec(IntFormat(bits), IntFormat(bits), groups, variant, **rest)
