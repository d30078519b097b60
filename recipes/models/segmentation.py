"""A small segmentation network with random weights, and natural images to run through it.

Input   image   float32 (batch, channel=3, row=64, column=64), as `photographs` makes them
Output  logits  float32 (batch, class=6, row=64, column=64), unnormalised, one score per class and pixel

It has the structures in which segmentation networks differ from classifiers: a contracting and an expanding path with
skips (Ronneberger et al., U-Net, 2015), dilated convolutions side by side (Chen et al., DeepLab, 2017), bilinear
enlargement to a neighbour's size, a transposed convolution, concatenation, and an output as large as the input.

The statistics of BatchNorm are those of 16 fit images, and the head is centred and scaled over them, so that every
logit has mean 0 and standard deviation 2 and pixels get different classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from photographs import BOTTOM, TOP, Image, crops
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 64  # pixels
CLASSES = 6
LOGIT_STD = 2.0


def block(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """A 3x3 convolution, BatchNorm and ReLU; (batch, inputs, row, column) to (batch, outputs, row/stride, ...)."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Segmentation(nn.Module):
    """The network; see the module's docstring for shapes and ranges."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = block(3, 16)  # (batch, 16, 64, 64)
        self.middle = block(16, 32, stride=2)  # (batch, 32, 32, 32)
        self.coarse = block(32, 48, stride=2)  # (batch, 48, 16, 16)
        self.context = nn.ModuleList(block(48, 16, dilation=dilation) for dilation in (1, 2, 4))
        self.join_middle = block(48 + 32, 32)
        self.enlarge = nn.ConvTranspose2d(32, 16, 2, 2)
        self.join_fine = block(16 + 16, 16)
        self.head = nn.Conv2d(16, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        fine = self.fine(image)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        context = torch.cat([branch(coarse) for branch in self.context], 1)
        up = F.interpolate(context, scale_factor=2, mode="bilinear", align_corners=False)
        middle = self.join_middle(torch.cat([up, middle], 1))
        logits: Tensor = self.head(self.join_fine(torch.cat([self.enlarge(middle), fine], 1)))
        return logits


def build() -> nn.Module:
    """The network in evaluation mode; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = Segmentation()
        images = torch.from_numpy(np.stack(list(crops(16, SIDE, seed=1, rows=TOP))))
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # plain average over the forward passes, of which there is one
        model.train()(images)
        logits = model.eval()(images)  # (batch, class, row, column)
        centre = logits.mean((0, 2, 3))
        scale = LOGIT_STD / logits.std((0, 2, 3))
        model.head.bias.sub_(centre).mul_(scale)
        model.head.weight.mul_(scale[:, None, None, None])
    return model


def fit_samples(count: int = 32) -> Iterator[dict[str, Image]]:
    """Samples to calibrate on, from the upper halves of the photographs only."""
    return ({"image": image} for image in crops(count, SIDE, seed=1, rows=TOP))


def judge_samples(count: int = 32) -> Iterator[dict[str, Image]]:
    """Samples to measure on, from the lower halves only: no pixel shared with `fit_samples`."""
    return ({"image": image} for image in crops(count, SIDE, seed=2, rows=BOTTOM))
