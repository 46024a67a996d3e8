"""How tensors travel: codes as the beats of the core's streams, and its output words as a matrix. No hardware here.

A beat holds the codes of one slot: R rows x lanes of A, or C columns x lanes of B, b bits each, code 0 lowest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics import IntFormat
from .gemmconfig import GemmConfig


def a_beats(config: GemmConfig, a: Tensor) -> list[int]:
    """a (M, K) -> for each panel of R rows, a beat for each slot; zeros beyond M and K."""
    return _beats(a, config.rows, config.spec.lanes, config.spec.a)


def b_beats(config: GemmConfig, b: Tensor) -> list[int]:
    """b (K, N) -> for each panel of C columns, a beat for each slot."""
    return _beats(b.T, config.cols, config.spec.lanes, config.spec.b)


def slot_lefts(config: GemmConfig, left: Tensor) -> list[int]:
    """left (K) -> one for each slot. ValueError where the lanes of a slot differ: pad groups to whole vectors first."""
    lanes = config.spec.lanes
    padded = torch.cat([left, left[-1:].expand(-len(left) % lanes)]).view(-1, lanes)
    if bool((padded != padded[:, :1]).any()):
        raise ValueError(f"k of different groups share a vector of {lanes}: pad each group to a multiple of {lanes}")
    return padded[:, 0].tolist()


def matrix(config: GemmConfig, words: list[int], m: int, n: int) -> Tensor:
    """Output words in stream order -> int64 (M, N)."""
    mp, np = -(-m // config.rows), -(-n // config.cols)
    tiles = torch.tensor(words, dtype=torch.int64).view(mp, np, config.rows, config.cols)
    return tiles.transpose(1, 2).reshape(mp * config.rows, np * config.cols)[:m, :n].contiguous()


def _beats(v: Tensor, side: int, lanes: int, fmt: IntFormat) -> list[int]:
    """v (rows, K) -> beats, panel by panel."""
    rows, k = v.shape
    padded = torch.zeros(-(-rows // side) * side, -(-k // lanes) * lanes, dtype=torch.int64)
    padded[:rows, :k] = v
    by_slot = padded.view(-1, side, padded.shape[1] // lanes, lanes).transpose(1, 2).reshape(-1, side * lanes)
    mask = (1 << fmt.bits) - 1
    return [sum((code & mask) << (i * fmt.bits) for i, code in enumerate(beat)) for beat in by_slot.tolist()]
