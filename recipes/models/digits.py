"""A small convolutional classifier of handwritten digits.

Input   image   float32 (batch, channel=1, row=32, column=32), range [0, 1], 0 paper to 1 ink
Output  logits  float32 (batch, class=10), unnormalised log-probabilities of the digits 0..9

The network has the structures that conversion and quantisation meet most often: convolution followed by
BatchNorm and ReLU, residual additions, a depthwise convolution, global pooling and a linear head. It has
119 466 parameters. `build` returns random weights; trained ones are in digits.safetensors beside this
file (made by train_digits.py), under the names of `state_dict()`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, then BatchNorm.

    float32 (batch, inputs, row, column) to (batch, outputs, row', column'); the padding is kernel // 2, so
    for odd kernels row' = ceil(row / stride), and likewise for columns.
    """
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Residual(nn.Module):
    """relu(x + f(x)), f two 3x3 convolutions; float32 (batch, channels, row, column) in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_bn(channels, channels, 3)
        self.second = conv_bn(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


class DepthwiseSeparable(nn.Module):
    """A 3x3 convolution per channel, then 1x1 across channels, each with BatchNorm and ReLU.

    float32 (batch, inputs, row, column) to (batch, outputs, row, column), range [0, inf).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = conv_bn(inputs, inputs, 3, groups=inputs)
        self.pointwise = conv_bn(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.pointwise(torch.relu(self.depthwise(x))))


class Digits(nn.Module):
    """The classifier; see the module's docstring for shapes and ranges."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(1, 32, 3, stride=2)  # (batch, 32, 16, 16)
        self.wide = Residual(32)
        self.down = conv_bn(32, 64, 3, stride=2)  # (batch, 64, 8, 8)
        self.deep = Residual(64)
        self.mix = DepthwiseSeparable(64, 96)  # (batch, 96, 8, 8)
        self.head = nn.Linear(96, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.wide(torch.relu(self.stem(image)))
        x = self.deep(torch.relu(self.down(x)))
        x = self.mix(x).mean((2, 3))  # (batch, 96)
        logits: Tensor = self.head(x)
        return logits


def build() -> nn.Module:
    """The network with random weights, in evaluation mode."""
    return Digits().eval()
