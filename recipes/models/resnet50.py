"""ResNet-50 of full size with random weights, and natural images to run through it.

Input   pixel_values  float32 (batch, channel=3, row=224, column=224), RGB under ImageNet normalisation
                      (v - mean) / std of values v in [0, 1], so the range lies within [-2.2, 2.7]
Output  logits        float32 (batch, class=1000), unnormalised

The network is transformers' ``ResNetForImageClassification``; the weights are drawn under a fixed seed and
nothing is downloaded, so it serves for size, speed and numerical agreement, not for recognising anything.

Drawn weights alone are degenerate. With BatchNorm's initial statistics (mean 0, variance 1) nothing is
normalised: the residual sums grow until logits have standard deviation 13 over the classes but 1.1 over the
samples, and every image gets the same class. `build` therefore
  1. sets the scale (gamma) of the last BatchNorm of every residual branch to 0.3 instead of 1. Trained
     networks have small ones too; at 1 the drawn network amplifies errors so much that bfloat16 alone
     changes its logits by 13 %, at 0.3 by 4 % (relative norm, after step 3);
  2. sets BatchNorm's statistics to those of 16 fit images, in one forward pass, which keeps every layer's
     values near unit scale; and
  3. centres and scales the head so that over these images each logit has mean 0 and all logits together have
     standard deviation 2, near that of trained classifiers. Without it the positive mean of the pooled
     features adds one pattern to the logits of all images (correlation 0.9), which share 2 or 3 classes.
Different images then get different classes, and an error in the weights or the arithmetic can be seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from photographs import BOTTOM, TOP, WHOLE, Image, crops
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.models.resnet.modeling_resnet import ResNetBottleNeckLayer

Sample = dict[str, Image]

SEED = 0
SIDE = 224  # pixels
CLASSES = 1000
LOGIT_STD = 2.0
BRANCH_SCALE = 0.3
SETTLING_IMAGES = 16


class ResNet50(nn.Module):
    """transformers' classifier with tensors in and out; see the module's docstring for shapes and ranges."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.model = ResNetForImageClassification(config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=pixel_values, return_dict=True).logits
        return logits


def build() -> nn.Module:
    """ResNet-50 (25 557 032 parameters) in evaluation mode; the caller's random state is left as it was.

    The same machine, thread count and torch version give the same weights; elsewhere the statistics of
    BatchNorm and the head may differ in the last bits.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = ResNet50(ResNetConfig(num_labels=CLASSES))
    _settle(model)
    return model.eval()


def _settle(model: ResNet50) -> None:
    """Set BatchNorm and the head from fit images, as the module's docstring explains."""
    images = [sample["pixel_values"] for sample in fit_samples(SETTLING_IMAGES)]
    pixel_values = torch.from_numpy(np.stack(images))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, ResNetBottleNeckLayer):
                module.layer[-1].normalization.weight.fill_(BRANCH_SCALE)
        for norm in norms:
            norm.momentum = None  # plain average over the forward passes, of which there is one
        model.train()(pixel_values)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

        logits = model.eval()(pixel_values)  # (batch, class)
        centre = logits.mean(0)
        scale = LOGIT_STD / (logits - centre).std()
        head = model.model.classifier[-1]
        head.bias.sub_(centre).mul_(scale)
        head.weight.mul_(scale)


def samples(count: int = 16, seed: int = 0, rows: tuple[float, float] = WHOLE) -> Iterator[Sample]:
    """Yield `count` samples {"pixel_values": float32 (channel=3, row=224, column=224)}, as `photographs.crops`."""
    return ({"pixel_values": image} for image in crops(count, SIDE, seed, rows))


def fit_samples(count: int = 16) -> Iterator[Sample]:
    """Samples to calibrate on, as `samples`, from the upper halves of the photographs only."""
    return samples(count, seed=1, rows=TOP)


def judge_samples(count: int = 32) -> Iterator[Sample]:
    """Samples to measure on, as `samples`, from the lower halves only: no pixel shared with `fit_samples`."""
    return samples(count, seed=2, rows=BOTTOM)
