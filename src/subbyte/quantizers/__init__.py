"""Quantizers: frozen dataclasses that turn a float tensor into a QTensor. How a scale is chosen is decided only here.

One idea a file; base.py says what all of them share.

Layout shared by all roles, so that an axis means the same everywhere:
    activation  (B, I) or (N, C, H, W)      axis 0 = samples, axis 1 = the channels that the forward product reduces
    weight      (O, I) or (O, C, R, S)      axis 0 = output channels, axis 1 = input channels
    gradient    (B, O) or (N, O, P, Q)      axis 0 = samples, axis 1 = the channels that grad_input reduces

Notation: b bits, Q the largest code, r_k = max |x| in channel k, R = max_k r_k.
"""

from .absmax import AbsMax, PerChannel, by_axis
from .base import (
    ROUNDINGS,
    Quantizer,
    channel_ranges,
    from_dict,
    reject_unknown,
    to_dict,
    variance_bound,
)
from .block_shift import BlockShiftQuant
from .clip import SAWB, MSEClip
from .householder import BlockHouseholder
from .learned import LearnedStep
from .logarithmic import LogUnbiased
from .mx import MXInt
from .oracle import GroupOracle, oracle_ranges
from .shift import ShiftQuant, chosen_exponents
from .token_shift import TokenShiftQuant
from .zero_point import ZeroPoint

__all__ = [
    "ROUNDINGS",
    "SAWB",
    "AbsMax",
    "BlockHouseholder",
    "BlockShiftQuant",
    "GroupOracle",
    "LearnedStep",
    "LogUnbiased",
    "MSEClip",
    "MXInt",
    "PerChannel",
    "Quantizer",
    "ShiftQuant",
    "TokenShiftQuant",
    "ZeroPoint",
    "by_axis",
    "channel_ranges",
    "chosen_exponents",
    "from_dict",
    "oracle_ranges",
    "reject_unknown",
    "to_dict",
    "variance_bound",
]
