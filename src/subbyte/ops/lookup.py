"""scatter_sum: the one integer sum behind Embedding and EmbeddingBag, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from .dispatch import op

_LARGEST_CODE = 255
_INT32_TERMS = ((1 << 31) - 1) // _LARGEST_CODE
"""So many codes add up within an int32, whatever their format."""


def _dtype(terms: int) -> torch.dtype:
    return torch.int32 if terms <= _INT32_TERMS else torch.int64


def _scatter_sum_fake(codes, index, rows):
    return codes.new_empty((rows, codes.shape[1]), dtype=_dtype(codes.shape[0]))


@op("(Tensor codes, Tensor index, int rows) -> Tensor", _scatter_sum_fake)
def scatter_sum(codes: Tensor, index: Tensor, rows: int) -> Tensor:
    """acc[i, d] = sum of codes[t, d] over the t with index[t] = i; an index of -1 leaves its codes out.

    codes  int8 or uint8 (T, D)
    index  int64 (T, 1), or (T, D) where each d goes its own way (the maximum of a bag); -1..rows-1
    -> int32 (rows, D), or int64 for more than 8,421,504 codes. Integer sums: no order of threads shows.
    """
    wide = codes.to(_dtype(codes.shape[0]))
    acc = wide.new_zeros((rows + 1, codes.shape[1]))  # the last row takes what is left out
    where = torch.where(index < 0, rows, index)
    if index.shape[1] == 1:
        acc.index_add_(0, where.flatten(), wide)
    else:
        acc.scatter_add_(0, where, wide)
    return acc[:rows].clone()
