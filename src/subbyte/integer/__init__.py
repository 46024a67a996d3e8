"""The arithmetic of the integer-only mode: what numerics.py rounds through floats, in integers alone. NORMATIVE.

Every scale is a power of two, so that a change of scale is one rounding right shift of an accumulator:

    tensor = codes * 2^exponent        codes of an IntFormat, exponent a Python int or an int tensor

  shifts   how far, and how it rounds        floats   where floats enter and leave, by their bits
  norm     L1 statistics of codes            batch_norm   the same as tables and coefficients, forward and backward

What runs a network in it is subbyte.integer_only; the RTL computes shifts and norm, too.
"""

from .floats import MANTISSA_BITS, NOT_FINITE, from_float, mantissas, round_to_float, to_float
from .norm import (
    L1_FACTOR_BITS,
    L1_FACTOR_FIXED,
    MAX_COUNT,
    RECIPROCAL_BITS,
    l1_normalize,
    l1_reciprocal,
    l1_statistics,
)
from .shifts import requantize, right_nearest, right_stochastic, shift_by, shift_to_bits, shift_to_fit

__all__ = [
    "L1_FACTOR_BITS",
    "L1_FACTOR_FIXED",
    "MANTISSA_BITS",
    "MAX_COUNT",
    "NOT_FINITE",
    "RECIPROCAL_BITS",
    "from_float",
    "l1_normalize",
    "l1_reciprocal",
    "l1_statistics",
    "mantissas",
    "requantize",
    "right_nearest",
    "right_stochastic",
    "round_to_float",
    "shift_by",
    "shift_to_bits",
    "shift_to_fit",
    "to_float",
]
