"""The operations that a backend may accelerate. An op's body is its reference; dispatch.py says how one is chosen."""

from ..numerics import packed_bytes
from . import chain, chain_norm
from .codes import absmax_codes, shift_codes
from .constants import shift_exponents
from .conv import (
    CHANNEL,
    ConvParams,
    conv2d,
    conv2d_amax,
    conv2d_grad_input,
    conv2d_grad_input_plus,
    conv2d_grad_weight,
    memory_format,
)
from .dispatch import BackendError, covered, last_kernel, note, recording, registered, use_backend
from .integer_constants import (
    int_affine_table,
    int_batch_table,
    int_from_float,
    int_norm_coefficients,
    int_running_statistics,
    int_shift_to_fit,
    int_to_float,
)
from .integer_conv import int_conv2d, int_conv2d_grad_input, int_conv2d_grad_weight
from .integer_sgd import int_sgd
from .integer_tokens import int_quantize_tokens, int_token_shifts
from .integers import (
    SUM_BITS,
    int_add,
    int_amax,
    int_lookup,
    int_norm_grad,
    int_quantize,
    int_relu,
    int_relu_grad,
    int_squared_errors,
)
from .linear import linear_backward, linear_forward
from .matmul import ContractError, channel_sums, int_matmul, matmul, matmul_accumulators
from .quantize import WHOLE, amax, narrow, pack, quantize, unpack
from .tokens import (
    pack_tokens,
    quantize_blocks,
    quantize_tokens,
    shifted,
    token_exponents,
    unpack_tokens,
)

__all__ = [
    "CHANNEL",
    "SUM_BITS",
    "WHOLE",
    "BackendError",
    "ContractError",
    "ConvParams",
    "absmax_codes",
    "amax",
    "chain",
    "chain_norm",
    "channel_sums",
    "conv2d",
    "conv2d_amax",
    "conv2d_grad_input",
    "conv2d_grad_input_plus",
    "conv2d_grad_weight",
    "covered",
    "int_add",
    "int_affine_table",
    "int_amax",
    "int_batch_table",
    "int_conv2d",
    "int_conv2d_grad_input",
    "int_conv2d_grad_weight",
    "int_from_float",
    "int_lookup",
    "int_matmul",
    "int_norm_coefficients",
    "int_norm_grad",
    "int_quantize",
    "int_quantize_tokens",
    "int_relu",
    "int_relu_grad",
    "int_running_statistics",
    "int_sgd",
    "int_shift_to_fit",
    "int_squared_errors",
    "int_to_float",
    "int_token_shifts",
    "last_kernel",
    "linear_backward",
    "linear_forward",
    "matmul",
    "matmul_accumulators",
    "memory_format",
    "narrow",
    "note",
    "pack",
    "pack_tokens",
    "packed_bytes",
    "quantize",
    "quantize_blocks",
    "quantize_tokens",
    "recording",
    "registered",
    "shift_codes",
    "shift_exponents",
    "shifted",
    "token_exponents",
    "unpack",
    "unpack_tokens",
    "use_backend",
]
