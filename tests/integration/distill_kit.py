"""What the tests of torch.distill and torch.train share: a teacher at rest, fit data, and a step run by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import distill_zoo
import numpy as np
import torch_kit as kit
import train_zoo

from optkit.artifact import Artifact, TensorSpec
from optkit.plans.named import named_files
from optkit.plugin import Context, Pass
from optkit.tasks.making import reread
from optkit.testing import ListSamples

ZOO = distill_zoo.__file__
TRAIN_ZOO = train_zoo.__file__
RNG = np.random.default_rng(0)
VECTORS = [{"x": RNG.standard_normal(8).astype(np.float32)} for _ in range(200)]
DATA = ListSamples(VECTORS)
LABELLED = ListSamples(VECTORS, [int(sample["x"][:4].argmax()) for sample in VECTORS])

QUICK: dict[str, Any] = {"student": {"torch": f"{ZOO}:student"}, "epochs": 6, "lr": 0.02}


def losses(*items: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The options of a quick training by these losses."""
    return {**QUICK, "losses": list(items), **more}


def source(folder: Path, factory: str = "teacher", inputs: Sequence[TensorSpec] = (kit.X,),
           outputs: Sequence[str] | None = ("scores",), **rest: Any) -> Artifact:  # fmt: skip
    """A model of the zoo at rest, its digest the name of its factory."""
    folder.mkdir(parents=True, exist_ok=True)
    return replace(kit.artifact(kit.descriptor(folder, inputs, f"{ZOO}:{factory}", outputs, **rest)), digest=factory)


class Turn:
    """One run of a pass. folder: new, but for `kept`, which may have an earlier run's checkpoints."""

    def __init__(self, use: Pass, teacher: Artifact, folder: Path, options: dict[str, Any], *,
                 parent: Artifact | None = None, data: Any = DATA, seed: int = 0,
                 kept: Path | None = None) -> None:  # fmt: skip
        assert teacher.signature is not None
        self.use, self.parent, self.out = use, parent or teacher, folder / "out"
        self.options = use.options.model_validate(options)
        self.told: list[tuple[str, float | None]] = []
        for name in ("scratch", "out"):
            (folder / name).mkdir(parents=True)
        self.context = Context(
            teacher.signature.inputs, tuple(t.name for t in teacher.signature.outputs), kit.DIMS, folder / "scratch",
            data, seed, progress=lambda text, fraction: self.told.append((text, fraction)), source=teacher, kept=kept,
            files=named_files(use, self.options, Path.cwd()),
        )  # fmt: skip

    def run(self) -> dict[str, Any]:
        """Its notes, after what it wrote was read back and confirmed."""
        notes = dict(self.use.run(self.parent, self.out, self.options, self.context))
        assert self.use.confirm is not None
        assert list(self.use.confirm(self.parent, self.artifact, self.options, self.context)) == []
        return notes

    @property
    def artifact(self) -> Artifact:
        """What it wrote, read back."""
        return reread(self.use, self.parent, self.out, self.context)

    @property
    def weights(self) -> bytes:
        """What it learned."""
        return (self.out / "weights.safetensors").read_bytes()
