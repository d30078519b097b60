"""What several tasks of a worker need: the dataset and the artifact that a step.json names, opened."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.artifact import Artifact, Dim, TensorSpec
from optkit.plugin import Session
from optkit.registry import get_runner

if TYPE_CHECKING:
    from optkit.data import Dataset
    from optkit.plugin import Tensors


Say = Callable[[str, "float | None"], None]
Data = dict[str, Any]


def first_rows(tensors: Tensors, rows: int, count: int) -> Tensors:
    """The first rows of tensors whose axis 0 is the sample axis; others whole."""
    return {name: t[:rows] if t.ndim and t.shape[0] == count else t for name, t in tensors.items()}


def session_of(step: Data, artifact: Artifact, precision: str | None = None) -> AbstractContextManager[Session]:
    """An artifact opened by its runner, for as long as a context lasts."""
    runner = get_runner(artifact.format)
    # Only a torch source of the recipe has to run where the recipe says; the check's device is the session's.
    return runner.open(artifact, device=step["device"], threads=step["threads"], precision=precision)


def dataset_of(step: Data, name: str) -> Dataset:
    """One of the step's datasets, opened."""
    from optkit.data import open_dataset
    from optkit.spec.dataspec import parse_data

    inputs = [TensorSpec.from_json(t) for t in step["inputs"]]
    dims = {k: Dim(**d) for k, d in step["dims"].items()}
    return open_dataset(parse_data(step["datasets"][name]), Path(step["base"]), inputs, dims, name)
