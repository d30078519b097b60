"""A plug-in whose models run only where a file called `device` is, as an engine does where its GPU is.

Its models are the toy plug-in's under another name; the file's folder is in the environment variable TOY_DEVICE.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optkit_toy as toy
from pydantic import Field

from optkit.artifact import Artifact
from optkit.errors import NotHereError, UnavailableError
from optkit.plugin import Context, Options, Pass


@contextmanager
def open_model(
    artifact: Artifact, device: str = "cpu", threads: int = 1, precision: str | None = None
) -> Iterator[toy.Session]:
    place = Path(os.environ["TOY_DEVICE"])
    if (place / "uninstalled").exists():
        raise UnavailableError("the away runtime is not installed", hint="pip install away")
    if not (place / "device").exists():
        raise NotHereError("made for a machine with the device; this one has none", hint="optkit verify, there")
    with toy.open_model(artifact, device, threads, precision) as session:
        yield session


AWAY = replace(toy.TOY, format="away", main="model.away", suffixes=(".away",), open=open_model, precisions=frozenset())


class AwayOptions(Options):
    off: float = Field(0.0, description="by how much every weight is wrong")


def to_away(artifact: Artifact, out_dir: Path, options: AwayOptions, context: Context) -> Mapping[str, Any]:
    model = toy.read(artifact.path)
    model["weights"] = (toy.weights_of(model) + options.off).astype(float).tolist()
    toy.write(model, out_dir / AWAY.main)
    return {}


TO_AWAY = Pass("toy.to_away", 1, "toy", "away", "for the device", to_away, options=AwayOptions, tools=("numpy",))
AGAIN = replace(TO_AWAY, name="away.again", source="away", summary="once more")
