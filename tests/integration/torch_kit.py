"""What the torch tests share: descriptors, contexts, and a comparison over the sizes a check visits."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_zoo

from optkit.artifact import Artifact, Dim, TensorSpec
from optkit.formats.torch import model as torch_model
from optkit.plugin import Context, Runner
from optkit.runners.torch_runner import RUNNER

ZOO = Path(torch_zoo.__file__)
DIMS = {"batch": Dim(1, 8, 64), "sequence": Dim(1, 16, 40)}
X = TensorSpec("x", "float32", ("batch", 8))
Y = TensorSpec("y", "float32", ("batch", 8))
IMAGE = TensorSpec("image", "float32", ("batch", 3, 12, 10))
IDS = TensorSpec("input_ids", "int64", ("batch", "sequence"), None, (0, 49))
MASK = TensorSpec("attention_mask", "int64", ("batch", "sequence"), None, (0, 1))
SERIES = TensorSpec("x", "float32", ("batch", "sequence", 8))


def descriptor(
    folder: Path, inputs: Sequence[TensorSpec], factory: str = "", outputs: Sequence[str] | None = None, **rest: Any
) -> Path:
    """A torch.json in `folder`, by default for a factory of the zoo."""
    path = folder / "torch.json"
    source = {"kind": "factory", "factory": factory if ":" in factory else f"{ZOO}:{factory}"} if factory else {}
    path.write_text(json.dumps({**source, "inputs": [spec.to_json() for spec in inputs], "outputs": outputs, **rest}))
    return path


def describe(path: Path, dims: Mapping[str, Dim] = DIMS) -> Any:
    return torch_model.describe(path, {"dims": {name: dim.to_json() for name, dim in dims.items()}})


def artifact(path: Path, dims: Mapping[str, Dim] = DIMS) -> Artifact:
    return Artifact("torch", path, "", describe(path, dims), (path.name,))


def context(source: Artifact, folder: Path, dims: Mapping[str, Dim] = DIMS) -> Context:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    assert source.signature is not None
    names = tuple(spec.name for spec in source.signature.outputs)
    return Context(source.signature.inputs, names, dims, scratch)


def out_dir(folder: Path) -> Path:
    out = folder / "out"
    out.mkdir()
    return out


def scripted(module: Any, path: Path) -> Path:
    """`module` as TorchScript on disk; torch warns that TorchScript is old."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        torch.jit.script(module.eval()).save(str(path))
    return path


def assert_same(
    source: Artifact, runner: Runner, target: Path, dims: Mapping[str, Dim] = DIMS, *, tolerance: float = 2e-6
) -> None:
    """The target answers as the source does, over min, opt, max and an odd size of every dim.

    tolerance: of float32 values around 1, a few roundings.
    """
    assert source.signature is not None
    made = Artifact(runner.format, target, "", runner.describe(target, {}), (target.name,))
    names = source.signature.dynamic
    cases = [
        {name: size(dims[name]) for name in names}
        for size in (lambda d: d.max, lambda d: d.opt, lambda d: d.min, lambda d: d.sizes[-1])
    ]
    with RUNNER.open(source) as torch_session, runner.open(made) as session:
        for sizes in cases:
            drawn = torch_model.example_feeds(source.signature.inputs, dims, sizes, seed=3)
            feeds = {name: tensor.numpy() for name, tensor in drawn.items()}
            wanted, got = torch_session.infer(feeds), session.infer(feeds)
            assert list(got) == list(wanted)
            for name in wanted:
                assert got[name].shape == wanted[name].shape, (name, sizes)
                assert got[name].dtype == wanted[name].dtype, (name, sizes)
                np.testing.assert_allclose(
                    got[name], wanted[name], atol=tolerance, rtol=tolerance, err_msg=f"{name} {sizes}"
                )


def fails(error: type[Exception], path: Path, subject: str, dims: Any = DIMS) -> Any:
    with pytest.raises(error) as caught:
        describe(path, dims)
    assert caught.value.subject == subject
    assert caught.value.hint
    return caught.value


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.path, "boom"))


ENCODER = (IDS, MASK)
