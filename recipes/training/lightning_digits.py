"""Trains a small digits classifier with Lightning, and ends with deliveries that are proven, or with an error.

    python recipes/training/lightning_digits.py [--out build/lightning-digits] [--epochs 12] [--gate 'accuracy >= 95%']

It needs `pip install "optkit[training,onnx]"` and takes under a minute on two cores. The weights of the best epoch go
to ONNX and int8 ONNX, and are judged on digits that neither training, nor the choice of the best, nor calibration has
seen. Figures go to TensorBoard, beside the training's own:

    tensorboard --logdir build/lightning-digits
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

try:
    import lightning.pytorch as pl
except ModuleNotFoundError:
    import pytorch_lightning as pl

from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from optkit.integrations.lightning import OptkitCallback

DIGITS = Path(__file__).parents[2] / "calibration"


class Net(nn.Module):
    """float32 image (batch, 1, 32, 32), 0 paper to 1 ink, to logits (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 4, stride=4), nn.BatchNorm2d(32), nn.ReLU())  # (batch, 32, 8, 8)
        self.deep = nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(1024, 10))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.deep(self.stem(image)))
        return logits


class Classifier(pl.LightningModule):
    """The training around `net`, which is what is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        image, label = batch
        return nn.functional.cross_entropy(self.net(image), label)

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        image, label = batch
        self.log("val_accuracy", (self.net(image).argmax(1) == label).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def arrays(name: str) -> dict[str, np.ndarray]:
    """A calibration set: image (sample, 1, 32, 32) and label (sample,)."""
    with np.load(DIGITS / f"digits-{name}.npz") as file:
        return dict(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/lightning-digits"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--gate", default="accuracy >= 95%")
    asked = parser.parse_args()

    pl.seed_everything(0)
    train = arrays("train")
    samples = TensorDataset(torch.from_numpy(train["image"]), torch.from_numpy(train["label"]))
    learn, choose = random_split(samples, [850, 150])

    export = OptkitCallback(
        model="net",
        when="best",
        to="onnx",
        steps=[{
            "id": "int8", "from": "onnx", "use": "onnx.quantize", "data": "fit",
            "check": ["cosine >= 0.98", "accuracy_drop <= 1%"],
        }],
        dims={"batch": (1, 8, 64)},
        outputs=["logits"],
        data=arrays("judge"),
        fit=arrays("fit"),
        metric="accuracy",
        gate=[asked.gate],
        name="digits",
        out=asked.out / "deliveries",
    )  # fmt: skip
    best = pl.callbacks.ModelCheckpoint(asked.out / "checkpoints", monitor="val_accuracy", mode="max")
    trainer = pl.Trainer(
        max_epochs=asked.epochs, accelerator="cpu", callbacks=[export, best],
        logger=pl.loggers.TensorBoardLogger(asked.out, name="tensorboard"), enable_progress_bar=False,
        log_every_n_steps=10,
    )  # fmt: skip
    loaders = DataLoader(learn, 50, shuffle=True), DataLoader(choose, 150)
    trainer.fit(Classifier(), *loaders)
    for name in ("onnx", "int8"):
        print(f"{name}: {export.report.path(name)}")


if __name__ == "__main__":
    main()
