"""The operations that a backend may accelerate. An op's body is its reference; dispatch.py says how one is chosen."""

from . import chain
from .constants import absmax_codes, shift_exponents
from .conv import (
    CHANNEL,
    ConvParams,
    conv2d,
    conv2d_amax,
    conv2d_grad_input,
    conv2d_grad_input_amax,
    conv2d_grad_weight,
)
from .dispatch import BackendError, last_kernel, note, recording, registered, use_backend
from .matmul import ContractError, matmul, matmul_accumulators
from .quantize import WHOLE, amax, narrow, pack, packed_bytes, quantize, unpack

__all__ = [
    "CHANNEL",
    "WHOLE",
    "BackendError",
    "ContractError",
    "ConvParams",
    "absmax_codes",
    "amax",
    "chain",
    "conv2d",
    "conv2d_amax",
    "conv2d_grad_input",
    "conv2d_grad_input_amax",
    "conv2d_grad_weight",
    "last_kernel",
    "matmul",
    "matmul_accumulators",
    "narrow",
    "note",
    "pack",
    "packed_bytes",
    "quantize",
    "recording",
    "registered",
    "shift_exponents",
    "unpack",
    "use_backend",
]
