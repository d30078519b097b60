"""Natural images without a download: squares cut out of scikit-learn's two sample photographs.

Images are float32 (channel=3, row, column), RGB under ImageNet normalisation (v - mean) / std of values v in [0, 1], so
the range lies within [-2.2, 2.7].
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import functional as F

Image = NDArray[np.float32]

SMALLEST_CROP = 80  # pixels of the photograph
MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB
STD = (0.229, 0.224, 0.225)
WHOLE, TOP, BOTTOM = (0.0, 1.0), (0.0, 0.5), (0.5, 1.0)  # row ranges, as fractions of a photograph's height


@cache
def _photographs() -> Tensor:
    """china.jpg and flower.jpg: float32 (photograph=2, channel=3, row=427, column=640), range [0, 1]."""
    pixels: NDArray[Any] = np.stack(load_sample_images().images)  # uint8 (2, row, column, channel)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def crops(count: int, side: int, seed: int = 0, rows: tuple[float, float] = WHOLE) -> Iterator[Image]:
    """Yield `count` images of `side` pixels, normalised.

    Each is a square of at least 80 pixels, and at most the height of the given range of rows, cut at a random
    place of one photograph (they take turns), resized with antialiasing and mirrored half the time.
    `rows` is a range of fractions of the height, at least a quarter wide. Equal arguments give equal images.
    Images of TOP and of BOTTOM share no pixel, so one serves to fit and the other to judge.
    """
    photographs = _photographs()
    height, width = photographs.shape[2:]
    first, last = round(rows[0] * height), round(rows[1] * height)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    generator = np.random.default_rng(seed)
    for index in range(count):
        edge = int(generator.integers(SMALLEST_CROP, last - first, endpoint=True))
        top = int(generator.integers(first, last - edge, endpoint=True))
        left = int(generator.integers(0, width - edge, endpoint=True))
        crop = photographs[index % len(photographs), :, top : top + edge, left : left + edge]
        image = F.interpolate(crop[None], (side, side), mode="bilinear", antialias=True)[0]
        if generator.random() < 0.5:
            image = image.flip(2)
        yield ((image - mean) / std).numpy()
