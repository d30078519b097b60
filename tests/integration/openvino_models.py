"""Tiny OpenVINO models, data and contexts for the tests of the OpenVINO runner and passes."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.artifact import Artifact, Dim, TensorSpec
from optkit.formats.openvino import core as openvino_core
from optkit.formats.openvino import model as openvino_model
from optkit.plugin import Context
from optkit.runners.openvino_runner import RUNNER

if TYPE_CHECKING:
    from optkit.plugin import Tensors

openvino_core.load()  # without its telemetry: the tests that need OpenVINO take it from here
import openvino as ov  # noqa: E402
import openvino.opset15 as ops  # noqa: E402

IMAGE = TensorSpec("image", "float32", ("batch", 3, 16, 16), layout="NCHW")
TOKENS = TensorSpec("tokens", "float32", ("batch", "length", 32))
DIMS = {"batch": Dim(1, 4, 16), "length": Dim(2, 8, 32)}


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal values scaled by the fan-in of the last axis."""
    return (np.random.default_rng(seed + sum(shape)).standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)


def cnn() -> ov.Model:
    """Two 3x3 convolutions with bias and ReLU, mean over the image, a linear layer: `(batch, 10)`."""
    x = image = ops.parameter([-1, 3, 16, 16], ov.Type.f32, name="image")
    for index, (inner, outer) in enumerate([(3, 8), (8, 16)]):
        kernel = weight(outer, inner, 3, 3) / 3
        x = ops.convolution(x, kernel, [2, 2], [1, 1], [1, 1], [1, 1], name=f"conv{index}")
        x = ops.relu(ops.add(x, weight(1, outer, 1, 1)), name=f"relu{index}")
    x = ops.reduce_mean(x, np.array([2, 3]), keep_dims=False, name="pool")
    return finished([ops.matmul(x, weight(10, 16), False, True, name="head")], [image], ["image"], ["logits"])


def encoder() -> ov.Model:
    """One attention layer with layer norms and a two-layer MLP over `(batch, length, 32)`; weights' rows are 32, 64."""
    x = tokens = ops.parameter([-1, -1, 32], ov.Type.f32, name="tokens")
    query, key, value = (ops.matmul(x, weight(32, 32, seed=s), False, True, name=f"proj{s}") for s in range(3))
    scores = ops.softmax(ops.multiply(ops.matmul(query, key, False, True), np.float32(0.25)), -1)
    x = norm(ops.add(x, ops.matmul(scores, value, False, False)))
    hidden = ops.gelu(ops.add(ops.matmul(x, weight(64, 32), False, True, name="up"), weight(1, 1, 64)), "ERF")
    x = norm(ops.add(x, ops.matmul(hidden, weight(32, 64), False, True, name="down")))
    return finished([ops.matmul(x, weight(8, 32), False, True, name="head")], [tokens], ["tokens"], ["scores"])


def norm(x: Any) -> Any:
    return ops.mvn(x, np.array([-1]), True, 1e-5, "inside_sqrt")


def relu() -> ov.Model:
    """No weights at all: relu of the image."""
    image = ops.parameter([-1, 3, 16, 16], ov.Type.f32, name="image")
    return finished([ops.relu(image)], [image], ["image"], ["logits"])


def finished(results: list[Any], inputs: list[Any], input_names: list[str], output_names: list[str]) -> ov.Model:
    model = ov.Model([ops.result(node) for node in results], inputs, "tiny")
    openvino_model.rename(model, input_names, output_names)
    return model


def written(model: ov.Model, folder: Path, *inputs: TensorSpec, dims: Mapping[str, Dim] = DIMS) -> Artifact:
    """`model` saved as optkit saves it, as an artifact with its signature."""
    folder.mkdir(parents=True, exist_ok=True)
    openvino_model.save(model, folder, inputs, dims)
    return artifact(folder)


def artifact(folder: Path) -> Artifact:
    path = folder / "model.xml"
    return Artifact("openvino", path, "", RUNNER.describe(path, {}), openvino_model.files(path))


def context(tmp_path: Path, *inputs: TensorSpec, outputs: tuple[str, ...], data: Any = None, **more: Any) -> Context:
    dims = {name: DIMS[name] for spec in inputs for name in spec.dynamic}
    return Context(inputs, outputs, dims, tmp_path, data, **more)


def converted(
    item: Any, source: Artifact, folder: Path, ctx: Context, **options: Any
) -> tuple[Artifact, dict[str, Any]]:
    """A pass run into an empty `folder`: the artifact and the notes. Its own confirm has nothing to say."""
    folder.mkdir(parents=True)
    chosen = item.options(**options)
    notes = item.run(source, folder, chosen, ctx)
    made = artifact(folder)
    assert list(item.confirm(source, made, chosen, ctx)) == []
    assert sorted(path.name for path in folder.iterdir()) == ["model.bin", "model.xml"]
    return made, dict(notes)


def infer(source: Artifact, feed: Tensors, **how: Any) -> Tensors:
    with RUNNER.open(source, **how) as session:
        return session.infer(feed)


def sqnr_db(reference: np.ndarray, found: np.ndarray) -> float:
    noise = float(np.linalg.norm(reference - found))
    return float("inf") if noise == 0 else 20 * float(np.log10(np.linalg.norm(reference) / noise))


@dataclasses.dataclass
class Streamed:
    """Samples made when asked for. seen: the shapes handed out; alive, peak: how many arrays exist, and did at most."""

    make: Callable[[int], Tensors]
    count: int
    seen: list[dict[str, tuple[int, ...]]] = dataclasses.field(default_factory=list)
    alive: int = 0
    peak: int = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensors]:
        return (self.make(index) for index in range(self.count))

    def feeds(self, batch: int) -> Iterator[Tensors]:
        for start in range(0, self.count, batch):
            items = [self.make(index) for index in range(start, min(start + batch, self.count))]
            feed = {name: np.stack([item[name] for item in items]) for name in items[0]}
            del items
            for array in feed.values():
                self.alive += 1
                weakref.finalize(array, self._gone)
            self.peak = max(self.peak, self.alive)
            self.seen.append({name: array.shape for name, array in feed.items()})
            yield feed

    def _gone(self) -> None:
        self.alive -= 1


def images(count: int) -> Streamed:
    def make(index: int) -> Tensors:
        return {"image": np.random.default_rng(index).standard_normal((3, 16, 16)).astype(np.float32)}

    return Streamed(make, count)


def sentences(count: int) -> Streamed:
    """Sequences of 3 to 10 tokens, one feature ten times as large as the rest: what SmoothQuant is for."""

    def make(index: int) -> Tensors:
        values = np.random.default_rng(index).standard_normal((3 + index % 8, 32)).astype(np.float32)
        values[:, 5] *= 10
        return {"tokens": values}

    return Streamed(make, count)
