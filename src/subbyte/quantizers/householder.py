"""BlockHouseholder (BHQ): reflections that spread a large row over many small ones before both are rounded.

x (N, ...), N samples; each is one row of D numbers. Rows are reflected within groups, so a group's scale is set by what
its large row leaves in each of k rows, not by that row itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..numerics import RANGE_FLOOR, IntFormat, step
from ..qtensor import Emulated
from .base import Quantizer


@dataclass(frozen=True)
class BlockHouseholder(Quantizer):
    """x ~ S^-1 round(S x): in each group of k rows S = c H diag(s_1, s_2, ..., s_2), the first row the largest.

    H = I - 2 n n^T / n^T n with n = e_1 - 1 / sqrt(k) takes e_1 to (1, ..., 1) / sqrt(k). With lambda_1 the range of
    the first row and lambda_2 that of the others, s_1 = lambda_1^(-1/3) and s_2 = lambda_2^(-1/3), the proportion that
    minimises the bound; c makes the largest |S x| of the group exactly Q (the paper bounds it), so nothing is clipped.
    E[round] = its argument and S is linear: unbiased. The bound on the variance of a group,
        D / 4 Q^2 (lambda_1^(2/3) k^(-1/3) + lambda_2^(2/3) k^(2/3))^3
    summed over groups, picks the number of groups among the powers of two up to N, and N (which is one scale for each
    row, PSQ); the others join the G largest rows in proportion to the ranges of those. Rows of zeros stay out.

    The scale of S^-1 mixes rows: products are emulated. S is float64, so an error of it is far below one of rounding.

    Source: Chen et al., "A statistical framework for low-bitwidth training of deep neural networks" (StatQuant), arXiv
    2010.14298, with its appendix; the symmetric grid without zero points, the exact c and the choice of the
    number of groups are this project's.
    """

    @property
    def format(self) -> IntFormat:
        """Signed: a reflection of values without a sign has one."""
        return IntFormat(self.bits)

    def represent(self, x: Tensor, stream: Tensor | None) -> Emulated:
        if x.ndim == 0 or x.numel() == 0:
            r = ops.amax(x, ops.WHOLE)
            codes = ops.quantize(x, r, None, stream, self.bits, True)
            return Emulated(codes.float() * step(r, self.format), self.format)
        rows = x.float().flatten(1) if x.ndim > 1 else x.float().unsqueeze(1)
        lost = ~rows.isfinite().all()
        rows = torch.where(lost | (rows.abs() < RANGE_FLOOR), torch.zeros_like(rows), rows).double()
        group, first, scale = row_groups(rows.abs().amax(1))
        mixed = reflect(rows * scale.unsqueeze(1), group, first).float()
        top = ops.amax(mixed, 0).flatten()
        r = torch.zeros_like(top).scatter_reduce(0, group, top, "amax")[group].unsqueeze(1)
        codes = ops.quantize(mixed, r, None, stream, self.bits, True)
        back = reflect(codes.double() * step(r, self.format).double(), group, first) / scale.unsqueeze(1)
        back = torch.where(lost, torch.nan, back)
        return Emulated(back.float().view(x.shape), self.format)


def row_groups(r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(group int64, is it the first of its group?, s float64) for each of N rows of range r, float64.

    A group is named by the rank of its largest row, a number below N.
    """
    n = r.numel()
    ordered, order = r.sort(descending=True, stable=True)
    rank = torch.arange(n, device=r.device)
    positive = (ordered > 0).sum()
    candidates = sorted({n, *(1 << i for i in range(n.bit_length()) if 1 << i < n)})
    labels, costs = [], []
    for heads in candidates:
        share = ordered[:heads].cumsum(0) / ordered[:heads].sum().clamp(min=torch.finfo(r.dtype).tiny)
        place = (rank - heads + 0.5) / (positive - heads).clamp(min=1)
        joined = torch.searchsorted(share, place.clamp(0, 1)).clamp(max=heads - 1)
        label = torch.where((rank < heads) | (ordered <= 0), rank, joined)
        one, two, k = group_ranges(ordered, label)
        bound = one ** (2 / 3) * k.clamp(min=1) ** (-1 / 3) + two ** (2 / 3) * k ** (2 / 3)
        labels.append(label)
        costs.append((bound**3).sum())
    label = torch.stack(labels)[torch.stack(costs).argmin()]
    one, two, _ = group_ranges(ordered, label)
    mine = torch.where(rank == label, one[label], two[label])
    s = torch.where(mine > 0, mine, torch.ones_like(mine)) ** (-1 / 3)
    place = torch.empty_like(order).scatter_(0, order, rank)
    return label[place], (rank == label)[place], s[place]


def group_ranges(ordered: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(lambda_1, lambda_2, k) of the group of each name; zeros where no group has it."""
    first = torch.arange(label.numel(), device=label.device) == label
    zero = torch.zeros_like(ordered)
    two = zero.scatter_reduce(0, label, torch.where(first, 0.0, ordered), "amax")
    return torch.where(first, ordered, 0.0), two, zero.index_add(0, label, torch.ones_like(ordered))


def reflect(x: Tensor, group: Tensor, first: Tensor) -> Tensor:
    """H x for each group of rows, its own inverse. x float64 (N, D); a group of one row stays as it is."""
    k = torch.zeros(group.numel(), dtype=x.dtype, device=x.device).index_add(0, group, torch.ones_like(x[:, 0]))[group]
    normal = (first.to(x.dtype) - k.rsqrt()).unsqueeze(1)
    along = torch.zeros_like(x).index_add(0, group, normal * x)[group]
    squared = (2 - 2 * k.rsqrt()).unsqueeze(1)
    return torch.where(squared > 0, x - 2 / squared.clamp(min=0.1) * normal * along, x)
