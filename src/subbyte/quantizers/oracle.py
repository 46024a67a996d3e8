"""GroupOracle: the best that any grouping of channels can do, as a yardstick for ShiftQuant."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Quantizer, channel_ranges
from .groups import split


@dataclass(frozen=True)
class GroupOracle(Quantizer):
    """The upper bound of group quantization: `groups` free scales, thresholds at the exact minimum of sum_k s_k^2.

    Dynamic programming over the sorted r_k, O(groups K^2). Its scales are no powers of two, so its products are
    emulated: it is the yardstick for ShiftQuant, not a way to train fast.
    """

    groups: int = 4
    axis: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups < 1:
            raise ValueError(f"GroupOracle takes 1 group or more, not {self.groups}")

    def ranges(self, x: Tensor) -> tuple[Tensor, None, int]:
        r_k = channel_ranges(x, self.axis)
        return oracle_ranges(r_k.flatten(), self.groups).view_as(r_k), None, 0

    def details(self) -> str:
        return f"{self.groups} free groups" + ("" if self.axis == 1 else f", axis {self.axis}")


def oracle_ranges(r_k: Tensor, groups: int) -> Tensor:
    """The range of each channel's group in the best split of the sorted r_k into `groups` runs. (K) -> (K) float32.

    Minimises sum_k (range of k's group)^2; channels of zeros cost nothing and keep range 0.
    """
    ordered, order = r_k.double().nan_to_num(nan=torch.inf).sort(descending=True)
    k = r_k.numel()
    if k == 0:
        return r_k
    positive = (ordered > 0).double()
    before = torch.cat((positive.new_zeros(1), positive.cumsum(0)))  # counted channels with index < b
    cost = (before.unsqueeze(0) - before[:-1].unsqueeze(1)) * ordered.square().unsqueeze(1)  # (start a, end b)
    at = torch.arange(k + 1, device=r_k.device)
    cost = torch.where(at.unsqueeze(0) > at[:-1].unsqueeze(1), cost, torch.inf)
    start = split(cost, torch.arange(k, device=r_k.device), groups)
    ranges = torch.where(ordered > 0, ordered[start], 0.0)
    return torch.empty_like(r_k).scatter_(0, order, ranges.to(r_k.dtype).where(ranges.isfinite(), torch.nan))
