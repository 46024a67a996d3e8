"""`smallvit`: a Transformer for small images, three pre-norm blocks over 8 x 8 patches.

Source: Dosovitskiy et al., "An image is worth 16x16 words", arXiv 2010.11929, with the mean over tokens in place of a
class token. Shapes: B images, C channels, T = 64 tokens, D = width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCHES = 8  # a side


class Block(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)). (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class SmallViT(nn.Module):
    """Patches, learned positions, blocks, norm, mean over tokens, `fc`. (B, in_channels, H, H) -> (B, num_classes)."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 32,
        *,
        width: int = 96,
        depth: int = 3,
        heads: int = 3,
        expansion: int = 2,
    ) -> None:
        super().__init__()
        if image_size % PATCHES:
            raise ValueError(f"smallvit cuts an image into {PATCHES} x {PATCHES} patches; {image_size} is no multiple")
        size = image_size // PATCHES
        self.patches = nn.Conv2d(in_channels, width, size, size)
        self.positions = nn.Parameter(torch.randn(1, PATCHES * PATCHES, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, expansion) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.fc(self.norm(self.blocks(x)).mean(1))
