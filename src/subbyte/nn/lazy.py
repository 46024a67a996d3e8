"""torch's lazy layers: quantized before they know their sizes, they become layers of this package on the first call."""

from __future__ import annotations

from torch import nn

from .batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .conv import Conv1d, Conv2d, Conv3d
from .conv_transpose import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from .group_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from .linear import Linear
from .quantized import QuantizedLayer

_LAZY: tuple[tuple[type[QuantizedLayer], type[nn.Module]], ...] = (
    (Linear, nn.LazyLinear),
    *((Conv1d, nn.LazyConv1d), (Conv2d, nn.LazyConv2d), (Conv3d, nn.LazyConv3d)),
    *((ConvTranspose1d, nn.LazyConvTranspose1d), (ConvTranspose2d, nn.LazyConvTranspose2d)),
    (ConvTranspose3d, nn.LazyConvTranspose3d),
    *((BatchNorm1d, nn.LazyBatchNorm1d), (BatchNorm2d, nn.LazyBatchNorm2d), (BatchNorm3d, nn.LazyBatchNorm3d)),
    *((InstanceNorm1d, nn.LazyInstanceNorm1d), (InstanceNorm2d, nn.LazyInstanceNorm2d)),
    (InstanceNorm3d, nn.LazyInstanceNorm3d),
)

for _becomes, _lazy in _LAZY:
    # The forward of what it becomes, on torch's lazy class: the first call materializes, then runs in integers.
    _namespace = {
        "__doc__": f"torch.nn.{_lazy.__name__}: the first call makes it a {_becomes.__name__} of this package.",
        "__module__": __name__,
        "cls_to_become": _becomes,
    }
    globals()[_lazy.__name__] = type(_lazy.__name__, (_becomes, _lazy), _namespace, replaces=_lazy)
