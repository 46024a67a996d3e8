"""`smallcnn`: four convolutions, for the 8x8 digits and for quick trials on 28x28 and 32x32 images."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_bn_relu(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """conv 3x3 (padding 1, no bias), norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class SmallCNN(nn.Module):
    """Widths 32, 32, 64 (stride 2), 64, mean over pixels, `fc`. (B, in_channels, H, W) -> (B, num_classes)."""

    def __init__(self, num_classes: int, in_channels: int = 1) -> None:
        super().__init__()
        self.block1 = conv_bn_relu(in_channels, 32)
        self.block2 = conv_bn_relu(32, 32)
        self.block3 = conv_bn_relu(32, 64, stride=2)
        self.block4 = conv_bn_relu(64, 64)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.block4(self.block3(self.block2(self.block1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))
