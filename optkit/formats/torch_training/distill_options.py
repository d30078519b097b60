"""What a recipe may say about the losses a student learns by, and which student it is."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from optkit.formats.torch_training.options import Training
from optkit.plugin import Options

TEMPERATURE = 4.0


class Student(Options):
    torch: str = Field(description="FILE.py:NAME or MODULE:NAME, a callable that returns the student, an nn.Module")
    weights: str | None = Field(None, description="its first weights; without them those the callable gives it")
    kwargs: dict[str, Any] = Field({}, description="the callable's arguments")
    strict: bool = Field(True, description="false: weights may lack keys or have more")
    files: tuple[str, ...] = Field((), description="further files and folders that decide what the callable returns")

    @property
    def named(self) -> tuple[str, ...]:
        """All that names files."""
        return (self.torch, *([self.weights] if self.weights else []), *self.files)


class Loss(Options):
    kind: Literal["kl", "mse", "cosine", "labels", "hidden", "attention"] = Field(
        description="kl: class scores at a temperature. mse: outputs, over the mean square of the teacher's. cosine: "
        "the angle between embeddings. labels: cross-entropy with the fit set's labels. hidden: what layers give. "
        "attention: maps of attention weights"
    )
    weight: float = Field(1.0, gt=0, description="what the loss is multiplied with in the sum")
    output: str | None = Field(None, description="the output it is about; needed where the model has several")
    layers: dict[str, str] = Field({}, description="hidden, attention: a layer of the student to the teacher's")
    temperature: float | None = Field(
        None, gt=0, description=f"kl: what scores are divided by; default {TEMPERATURE:g}"
    )
    axis: int | None = Field(None, description="kl, labels: the axis of the classes; default the last")
    distance: Literal["mse", "cosine"] | None = Field(None, description="hidden: how layers are compared; default mse")
    label: str | None = Field(None, description="labels: which of the fit set's labels, where it has several")

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Loss:
        takes = {
            "kl": {"output", "temperature", "axis"}, "mse": {"output"}, "cosine": {"output"},
            "labels": {"output", "label", "axis"}, "hidden": {"layers", "distance"}, "attention": {"layers"},
        }[self.kind]  # fmt: skip
        odd = sorted(self.model_fields_set - takes - {"kind", "weight"})
        odd = [name for name in odd if getattr(self, name) not in (None, {})]  # a default, written down
        if odd:
            raise ValueError(f"a loss of kind {self.kind} takes no {' and no '.join(odd)}")
        if "layers" in takes and not self.layers:
            raise ValueError(f"a loss of kind {self.kind} needs layers: {{student.layer: teacher.layer}}")
        return self


class Lessons(Training):
    losses: tuple[Loss, ...] = Field(
        (), description="what is made small, as a sum; default: every float output's, cosine for embeddings of length "
        "one and mse for others"
    )  # fmt: skip
    mask: str | None = Field(
        None, description="an input (batch, position) whose zeros mark positions that are not compared: attention_mask"
    )


__all__ = ["TEMPERATURE", "Lessons", "Loss", "Student"]
