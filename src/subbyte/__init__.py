"""subbyte: train neural networks in integers of 2 to 8 bits, with PyTorch.

    import subbyte as sb
    sb.quantize_(model, sb.Scheme.from_name("int4"))
    ...train as ever...
    print(sb.report(model, x, y, loss_fn))

The floors, from the bottom: numerics, qtensor, observe, backends, ops, quantizers, scheme, autograd, norm, chain, nn,
fusion, convert, gain, report; then data and models, train, cli.
"""

from . import integer, nn, numerics, ops, optim, quantizers
from .convert import dequantize_, float_state_dict, quantize_
from .float_ops import FloatOpCounter
from .fusion import Fusion, fuse_, unfuse_
from .gain import Gain, fastest_here, gains
from .numerics import IntFormat, accumulator_bits
from .observe import arm as observe
from .qtensor import Emulated, Inside, PackedQTensor, QTensor
from .quantizers import (
    SAWB,
    AbsMax,
    BlockHouseholder,
    BlockShiftQuant,
    GroupOracle,
    LearnedStep,
    LogUnbiased,
    MSEClip,
    MXInt,
    PerChannel,
    Quantizer,
    ShiftQuant,
    TokenShiftQuant,
    ZeroPoint,
)
from .report import MacCounter, Report, report
from .scheme import LayerScheme, NormScheme, Scheme

__version__ = "0.1.0"

__all__ = [
    "SAWB",
    "AbsMax",
    "BlockHouseholder",
    "BlockShiftQuant",
    "Emulated",
    "FloatOpCounter",
    "Fusion",
    "Gain",
    "GroupOracle",
    "Inside",
    "IntFormat",
    "LayerScheme",
    "LearnedStep",
    "LogUnbiased",
    "MSEClip",
    "MXInt",
    "MacCounter",
    "NormScheme",
    "PackedQTensor",
    "PerChannel",
    "QTensor",
    "Quantizer",
    "Report",
    "Scheme",
    "ShiftQuant",
    "TokenShiftQuant",
    "ZeroPoint",
    "accumulator_bits",
    "dequantize_",
    "fastest_here",
    "float_state_dict",
    "fuse_",
    "gains",
    "integer",
    "nn",
    "numerics",
    "observe",
    "ops",
    "optim",
    "quantize_",
    "quantizers",
    "report",
    "unfuse_",
]
