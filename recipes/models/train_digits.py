"""Train the digit classifier and write digits.safetensors beside this file.

    python recipes/models/train_digits.py [--output FILE]

Reads calibration/digits-train.npz only; digits-judge.npz is opened once, after the last step, to print the
final accuracy. The number of epochs is fixed: nothing is selected on the judge set. The run is seeded and
single-threaded, so one machine and one torch version give the same weights every time.

Images are float32 (sample, channel=1, row=32, column=32) in [0, 1], labels int64 (sample,) in 0..9. Each
training image is rotated by up to 10 degrees, scaled by up to 10 % and moved by up to 4 pixels (one pixel of
the 8x8 source) in each direction, filled with 0 (paper).
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from digits import build
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
CALIBRATION = HERE.parents[1] / "calibration"
SEED = 0
EPOCHS = 30
BATCH = 50
RATE = 4e-3  # peak learning rate
DECAY = 0.02  # weight decay
SMOOTHING = 0.05  # label smoothing
ROTATION = math.radians(10)
ZOOM = 0.1
SHIFT = 4 / 16  # 4 pixels; the grid spans 2 over 32 pixels


def load(split: str) -> tuple[Tensor, Tensor]:
    """Images float32 (sample, 1, 32, 32) in [0, 1] and labels int64 (sample,) of digits-<split>.npz."""
    with np.load(CALIBRATION / f"digits-{split}.npz", allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["image"]), torch.from_numpy(arrays["label"])


def augment(image: Tensor) -> Tensor:
    """Random rotation, scale and shift, one draw per image; float32 (batch, 1, 32, 32) in and out."""

    def draw(limit: float) -> Tensor:
        return (torch.rand(image.shape[0]) * 2 - 1) * limit

    angle, zoom = draw(ROTATION), 1 + draw(ZOOM)
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    across = torch.stack([cosine, -sine, draw(SHIFT)], 1)
    down = torch.stack([sine, cosine, draw(SHIFT)], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, align_corners=False)


def train(image: Tensor, label: Tensor) -> nn.Module:
    """A network trained on images (sample, 1, 32, 32) and labels (sample,); returned in evaluation mode."""
    torch.manual_seed(SEED)
    model = build().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    steps = EPOCHS * math.ceil(len(image) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for epoch in range(EPOCHS):
        total = 0.0
        for chosen in torch.randperm(len(image)).split(BATCH):
            logits = model(augment(image[chosen]))
            loss = F.cross_entropy(logits, label[chosen], label_smoothing=SMOOTHING)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(chosen)
        print(f"epoch {epoch + 1:2d} of {EPOCHS}: training loss {total / len(image):.4f}", flush=True)
    return model.eval()


def correct(model: nn.Module, image: Tensor, label: Tensor) -> int:
    """How many of the images (sample, 1, 32, 32) the model gives their label (sample,)."""
    with torch.no_grad():
        return int((model(image).argmax(1) == label).sum())


def main() -> None:
    """Train, write the weights, then measure them once on the judge set."""
    parser = argparse.ArgumentParser(description="Train the digit classifier.")
    parser.add_argument("--output", type=Path, default=HERE / "digits.safetensors", help="the weights' file")
    output: Path = parser.parse_args().output

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    start = time.perf_counter()
    model = train(*load("train"))
    seconds = time.perf_counter() - start
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, output)

    image, label = load("judge")
    right = correct(model, image, label)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters} parameters, trained in {seconds:.0f} s, written to {output}")
    print(f"judge accuracy {right / len(label):.4f} ({right} of {len(label)})")


if __name__ == "__main__":
    main()
