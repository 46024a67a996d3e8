"""Cutting a line into runs of least cost by dynamic programming: how groups of channels are chosen."""

from __future__ import annotations

import torch
from torch import Tensor


def split(cost: Tensor, position: Tensor, groups: int) -> Tensor:
    """Cut 0..n-1 into at most `groups` runs of least total cost; returns where the run of each `position` starts.

    cost (n, n + 1): cost[a, b] of the run a..b-1, inf where b <= a. f_g(b) = min_a f_(g-1)(a) + cost(a, b); then the
    choices are walked back from b = n, as tensors: no number leaves the device.
    """
    best, previous = cost[0], []
    for _ in range(groups - 1):
        f, a = (best[:-1].unsqueeze(1) + cost).min(0)
        keep = best <= f  # fewer runs where more do not help
        previous.append(torch.where(keep, torch.full_like(a, -1), a))
        best = torch.where(keep, best, f)
    start = torch.zeros_like(position)
    end = torch.full((1,), cost.shape[0], dtype=torch.int64, device=cost.device)
    for a_of_b in reversed(previous):
        a = a_of_b[end]
        cut = a >= 0
        start = torch.where(cut & (position >= a) & (position < end), a.to(start.dtype), start)
        end = torch.where(cut, a, end)
    return start
