"""A small vision transformer with random weights, and natural images to run through it.

Input   pixel_values  float32 (batch, channel=3, row=64, column=64), as `photographs` makes them
Output  logits        float32 (batch, class=10), unnormalised

The network is transformers' ``ViTForImageClassification`` with 2 layers of width 96 on patches of 8 x 8 pixels; nothing
is downloaded. Its weights are drawn with the variance 1 / fan-in (LeCun et al., Efficient BackProp, 1998): under
transformers' own standard deviation of 0.02, right for a width of 768, attention is uniform and the layers add almost
nothing here. The head is centred and scaled so that over 16 fit images each logit has mean 0 and all have standard
deviation 2, near that of trained classifiers; without it all images get the same class.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from photographs import BOTTOM, TOP, Image, crops
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

SIDE = 64  # pixels
CLASSES = 10
LOGIT_STD = 2.0


class SmallViT(nn.Module):
    """transformers' classifier with tensors in and out; see the module's docstring for shapes and ranges."""

    def __init__(self) -> None:
        super().__init__()
        config = ViTConfig(image_size=SIDE, patch_size=8, hidden_size=96, num_hidden_layers=2, num_attention_heads=4,
                           intermediate_size=192, num_labels=CLASSES)  # fmt: skip
        self.model = ViTForImageClassification(config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=pixel_values).logits
        return logits


def build() -> nn.Module:
    """The network in evaluation mode; the caller's random state is left as it was."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = SmallViT().eval()
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                drawn = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(drawn / module.weight[0].numel() ** 0.5)
        logits = model(torch.from_numpy(np.stack(list(crops(16, SIDE, seed=1, rows=TOP)))))  # (batch, class)
        centre = logits.mean(0)
        scale = LOGIT_STD / (logits - centre).std()
        head = model.model.classifier
        head.bias.sub_(centre).mul_(scale)
        head.weight.mul_(scale)
    return model


def fit_samples(count: int = 32) -> Iterator[dict[str, Image]]:
    """Samples to calibrate on, from the upper halves of the photographs only."""
    return ({"pixel_values": image} for image in crops(count, SIDE, seed=1, rows=TOP))


def judge_samples(count: int = 32) -> Iterator[dict[str, Image]]:
    """Samples to measure on, from the lower halves only: no pixel shared with `fit_samples`."""
    return ({"pixel_values": image} for image in crops(count, SIDE, seed=2, rows=BOTTOM))
