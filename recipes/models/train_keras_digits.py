"""Train a small Keras digit classifier and write keras_digits.keras beside this file.

    python recipes/models/train_keras_digits.py [--output FILE]

Reads calibration/digits-train.npz only; digits-judge.npz is opened once, after the last step, to print the final
accuracy. The number of epochs is fixed: nothing is selected on the judge set. The run is seeded and single-threaded, so
one machine and one TensorFlow version give the same weights every time.

Images are float32 (sample, row=32, column=32, channel=1) in [0, 1], labels int64 (sample,) in 0..9. Each training image
is moved by up to 3 pixels in each direction, filled with 0 (paper).
"""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import argparse
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

HERE = Path(__file__).resolve().parent
CALIBRATION = HERE.parents[1] / "calibration"
SEED = 0
EPOCHS = 30
BATCH = 50
RATE = 4e-3  # peak learning rate
SHIFT = 3  # pixels


def load(split: str) -> tuple[Any, Any]:
    """Images float32 (sample, 32, 32, 1) in [0, 1] and labels int64 (sample,) of digits-<split>.npz."""
    with np.load(CALIBRATION / f"digits-{split}.npz", allow_pickle=False) as arrays:
        return np.moveaxis(arrays["image"], 1, -1).copy(), arrays["label"]


def build() -> keras.Model:
    """The network, untrained: image (batch, 32, 32, 1) to logits (batch, 10)."""
    layers = keras.layers
    image = keras.Input((32, 32, 1), name="image")
    hidden: Any = image
    for width in (16, 32, 32):
        hidden = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(hidden)
        hidden = layers.BatchNormalization()(hidden)
        hidden = layers.ReLU()(hidden)
    hidden = layers.Flatten()(hidden)
    hidden = layers.Dropout(0.2)(hidden)
    return keras.Model(image, layers.Dense(10, name="logits")(hidden), name="digits")


def moved(images: Any, generator: np.random.Generator) -> Any:
    """Each image moved by a draw of its own; (sample, 32, 32, 1) in and out."""
    padded = np.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)))
    starts = generator.integers(0, 2 * SHIFT + 1, (len(images), 2))
    return np.stack([padded[i, y : y + 32, x : x + 32] for i, (y, x) in enumerate(starts)])


def train(images: Any, labels: Any) -> keras.Model:
    """A network trained on images (sample, 32, 32, 1) and labels (sample,)."""
    model = build()
    steps = EPOCHS * len(images) // BATCH
    model.compile(
        keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(RATE, steps), weight_decay=0.02),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    generator = np.random.default_rng(SEED)
    for epoch in range(EPOCHS):
        shown, order = moved(images, generator), generator.permutation(len(images))
        losses = [
            float(model.train_on_batch(shown[chosen], labels[chosen]))
            for chosen in np.split(order, len(order) // BATCH)
        ]
        print(f"epoch {epoch + 1:2d} of {EPOCHS}: training loss {np.mean(losses):.4f}", flush=True)
    return model


def main() -> None:
    """Train, write the model, then measure it once on the judge set."""
    parser = argparse.ArgumentParser(description="Train the Keras digit classifier.")
    parser.add_argument("--output", type=Path, default=HERE / "keras_digits.keras", help="the model's file")
    output: Path = parser.parse_args().output

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(SEED)
    start = time.perf_counter()
    model = train(*load("train"))
    seconds = time.perf_counter() - start
    # Without the optimiser's state, of which nobody who deploys the model has a use.
    plain = keras.models.clone_model(model)
    plain.set_weights(model.get_weights())
    plain.save(output)

    images, labels = load("judge")
    right = int((np.asarray(model(images, training=False)).argmax(1) == labels).sum())
    print(f"{model.count_params()} parameters, trained in {seconds:.0f} s, written to {output}")
    print(f"judge accuracy {right / len(labels):.4f} ({right} of {len(labels)})")


if __name__ == "__main__":
    main()
