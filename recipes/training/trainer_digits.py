"""Trains a small digits classifier with the Hugging Face Trainer, and ends with proven deliveries, or with an error.

    python recipes/training/trainer_digits.py [--out build/trainer-digits] [--epochs 12] [--gate 'accuracy >= 95%']

It needs `pip install "optkit[training,transformers,openvino]" mlflow-skinny` and takes under a minute on two cores. The
weights of the best epoch go to OpenVINO and its float16 form, and are judged on digits that neither training nor the
choice of the best has seen. Figures, reports and deliveries go to the MLflow run, beside the training's own.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import mlflow
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainingArguments, set_seed

from optkit.integrations.transformers import OptkitCallback

DIGITS = Path(__file__).parents[2] / "calibration"


class Classifier(nn.Module):
    """float32 image (batch, 1, 32, 32), 0 paper to 1 ink, to logits (batch, 10); with labels the loss too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 4, stride=4), nn.BatchNorm2d(32), nn.ReLU())  # (batch, 32, 8, 8)
        self.deep = nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(1024, 10))

    def forward(self, image: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.deep(self.stem(image)))
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


class Digits(Dataset[dict[str, Tensor]]):
    """A part of a calibration set, a sample at a time."""

    def __init__(self, data: dict[str, np.ndarray], part: slice) -> None:
        self.image, self.labels = torch.from_numpy(data["image"][part]), torch.from_numpy(data["label"][part])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.image[index], "labels": self.labels[index]}


def arrays(name: str) -> dict[str, np.ndarray]:
    """A calibration set: image (sample, 1, 32, 32) and label (sample,)."""
    with np.load(DIGITS / f"digits-{name}.npz") as file:
        return dict(file)


def accuracy(seen: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((seen.predictions.argmax(1) == seen.label_ids).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/trainer-digits"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--gate", default="accuracy >= 95%")
    asked = parser.parse_args()

    set_seed(0)
    if "MLFLOW_TRACKING_URI" not in os.environ:  # a folder, for want of a server or a database
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
        mlflow.set_tracking_uri((asked.out / "mlflow").absolute().as_uri())
    train = arrays("train")
    export = OptkitCallback(
        when="best",
        to="openvino",
        steps=[{"id": "fp16", "from": "openvino", "use": "openvino.fp16"}],
        dims={"batch": (1, 8, 64)},
        data=arrays("judge"),
        metric="accuracy",
        gate=[asked.gate, "size <= 500 kB"],
        name="digits",
        out=asked.out / "deliveries",
    )
    arguments = TrainingArguments(
        str(asked.out / "checkpoints"), num_train_epochs=asked.epochs, per_device_train_batch_size=50,
        per_device_eval_batch_size=150, learning_rate=2e-3, lr_scheduler_type="constant", use_cpu=True,
        eval_strategy="epoch", save_strategy="best", metric_for_best_model="accuracy", report_to=["mlflow"],
        disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        Classifier(), arguments, train_dataset=Digits(train, slice(850)), eval_dataset=Digits(train, slice(850, None)),
        compute_metrics=accuracy, callbacks=[export],
    )  # fmt: skip
    trainer.train()
    for name in ("openvino", "fp16"):
        print(f"{name}: {export.report.path(name)}")


if __name__ == "__main__":
    main()
