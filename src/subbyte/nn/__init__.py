"""Layers: torch's own, with a scheme. Adding one is a class with `replaces=`; convert.py finds it in the registry."""

from __future__ import annotations

import functools

import torch

from . import lazy
from .attention import MultiheadAttention, OutProjection
from .batch_norm import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from .bilinear import Bilinear
from .conv import Conv1d, Conv2d, Conv3d
from .conv_transpose import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from .embedding import Embedding, EmbeddingBag
from .group_norm import GroupNorm, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from .linear import Linear
from .lora import LoRALinear, add_lora_, merge_lora_
from .norm import NormLayer
from .quantized import REGISTRY, ProductLayer, QuantizedLayer
from .row_norm import LayerNorm, RMSNorm

__all__ = [
    "REGISTRY",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Bilinear",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Embedding",
    "EmbeddingBag",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "Linear",
    "LoRALinear",
    "MultiheadAttention",
    "NormLayer",
    "OutProjection",
    "ProductLayer",
    "QuantizedLayer",
    "RMSNorm",
    "add_lora_",
    "lazy",
    "merge_lora_",
]


def _guard_sync_batchnorm() -> None:
    """torch's convert_sync_batchnorm takes any BatchNorm for a float one and would undo the quantization in silence."""
    original = torch.nn.SyncBatchNorm.convert_sync_batchnorm

    @functools.wraps(original)
    def convert_sync_batchnorm(module, process_group=None):
        found = [name for name, m in module.named_modules() if isinstance(m, BatchNorm)]
        if found:
            raise TypeError(
                f"convert_sync_batchnorm would turn {len(found)} quantized BatchNorm ({found[0]!r}, ...) into float "
                "SyncBatchNorm; dequantize_ the model first"
            )
        return original(module, process_group)

    torch.nn.SyncBatchNorm.convert_sync_batchnorm = convert_sync_batchnorm  # type: ignore[method-assign]


_guard_sync_batchnorm()
