"""What a recipe may say about how a student learns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from optkit.plugin import Options


def share(value: object) -> object:
    """0.1 of "10%"."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip().removesuffix("%")) / 100
        except ValueError:
            return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 1 < value < 100:
        raise ValueError(f"should be less than 1, got {value:g}; {value:g}% if percent are meant")
    return value


Share = Annotated[
    float,
    BeforeValidator(share),
    Field(gt=0, lt=1),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
                              {"type": "string", "pattern": r"^[0-9.]+ *%$"}]}),
]  # fmt: skip

EPOCHS = 10
BATCH_SIZE = 32


class Training(Options):
    epochs: int | None = Field(None, ge=1, description=f"how often every sample is learned from; default {EPOCHS}")
    steps: int | None = Field(None, ge=1, description="how many batches are learned from, in place of epochs")
    batch_size: int | None = Field(
        None, ge=1, description=f"samples per step, at most; default {BATCH_SIZE}, or what the model takes"
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="sgd has a momentum of 0.9")
    lr: float = Field(1e-3, gt=0, description="the learning rate at its highest")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="how the learning rate goes on after the warm-up: down to 0 along a cosine, or as it is"
    )
    warmup: float = Field(0.05, ge=0, lt=1, description="the part of the steps in which the learning rate rises from 0")
    weight_decay: float = Field(
        0.01, ge=0, description="of weights; biases and what normalises (tensors of one axis) are left out"
    )
    clip_norm: float | None = Field(
        1.0, gt=0, description="gradients longer than this are shortened to it; null: never"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="bfloat16: products are computed in it (autocast), on processors made for it twice as fast and "
        "more; weights stay in float32",
    )
    freeze: tuple[str, ...] = Field((), description="parameters that stay as they are, as globs: embeddings.*")
    held_out: Share = Field(
        0.1, description="the part of the fit data that is not learned from but judged on: 0.1, 10%"
    )
    patience: int | None = Field(
        None, ge=1, description="stop after so many epochs in which the held-out loss did not fall; default: never"
    )
    checkpoint_seconds: float = Field(
        60.0, ge=0, description="time between checkpoints, from which a killed run goes on; 0: after every step"
    )

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("name epochs or steps, not both")
        return self


__all__ = ["BATCH_SIZE", "EPOCHS", "Share", "Training", "share"]
