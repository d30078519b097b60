"""A training repository in a folder: a factory with a helper beside it, its weights, samples, and a recipe."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from optkit.artifact import Artifact, Signature
from optkit.cache import Cache
from optkit.caching.keys import dims_json
from optkit.errors import OptkitError, from_json
from optkit.models.sources import source_artifact
from optkit.recipe import Recipe, load_recipe
from optkit.worker import perform

NET = """\
import torch
from torch import nn
from helpers import scale


class Net(nn.Module):
    def __init__(self, width=4, classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, classes)

    def forward(self, image):
        return self.head(self.drop(torch.relu(self.conv(image)).mean((2, 3)) * scale()))


class Branch(nn.Module):
    def forward(self, image):
        if image.shape[0] > 4:
            return image.mean((2, 3)) * 2
        return image.mean((2, 3))


class Same(nn.Module):
    def forward(self, image):
        return image.mean((2, 3)) @ torch.ones(3, 2)


class Flat(nn.Module):
    def forward(self, image):
        return image.flatten(1) @ torch.ones(192, 2)


def build(width=4, classes=3):
    return Net(width, classes)


def raises():
    raise ValueError("no such layer")


def nothing():
    return None


def leave():
    raise SystemExit(3)


def branch():
    return Branch()


def flat():
    return Flat()
"""

RECIPE = """\
version: 1
name: net
model:
  torch: models/net.py:build
  weights: w.safetensors
inputs:
  image: {shape: [batch, 3, 8, 8]}
dims:
  batch: {min: 1, opt: 4, max: 8}
data:
  judge: {npz: judge.npz}
check_on: judge
steps:
  - {id: onnx, to: onnx}
"""

TORCH = "torch: models/net.py:build\n  weights: w.safetensors"
"""What tests put other sources in the place of."""


def repository(base: Path) -> Path:
    """The folder, without any weights: no backend is loaded."""
    (base / "models").mkdir(parents=True)
    (base / "models/net.py").write_text(NET)
    (base / "models/helpers.py").write_text("def scale():\n    return 1.5\n")
    (base / "recipe.yaml").write_text(RECIPE)
    image = np.random.default_rng(0).standard_normal((22, 3, 8, 8)).astype(np.float32)
    np.savez(base / "judge.npz", image=image[:10])
    np.savez(base / "fit.npz", image=image[10:])
    return base


def aged(base: Path) -> Path:
    """The folder, with files old enough for their digests to be remembered."""
    for path in base.rglob("*"):
        os.utime(path, (time.time() - 60,) * 2)
    return base


def trained(base: Path) -> Any:
    """Every file a trained `Net` can be saved as, put into the folder; returns the module, in eval mode."""
    import importlib.util
    import sys

    import torch
    from safetensors.torch import save_file

    sys.path.insert(0, str(base / "models"))
    try:
        spec = importlib.util.spec_from_file_location("net", base / "models/net.py")
        assert spec is not None
        assert spec.loader is not None
        code = importlib.util.module_from_spec(spec)
        sys.modules["net"] = code
        spec.loader.exec_module(code)
        torch.manual_seed(5)
        net = code.build()
        save_file(net.state_dict(), base / "w.safetensors")
        torch.save(net.state_dict(), base / "w.pt")
        torch.save({"model": net.state_dict(), "epoch": 3}, base / "w.pth")
        torch.save(net, base / "whole.pt")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            torch.jit.script(net.eval()).save(str(base / "script.pt"))
            batch = torch.export.Dim("batch", min=1, max=8)
            program = torch.export.export(net, (torch.zeros(3, 3, 8, 8),), dynamic_shapes=({0: batch},))
            torch.export.save(program, base / "program.pt2")
        return net
    finally:
        sys.path.remove(str(base / "models"))
        for name in ("net", "helpers"):
            sys.modules.pop(name, None)


def recipe_of(folder: Path, *changes: tuple[str, str]) -> Recipe:
    text = RECIPE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "recipe.yaml").write_text(text)
    return load_recipe(folder / "recipe.yaml")


def described(recipe: Recipe, cache: Cache) -> Artifact:
    """The source as a worker describes it, in this process. Raises what went wrong, with its place in the recipe."""
    try:
        artifact = source_artifact(recipe, cache)
        assert artifact is not None
        result = perform({
            "task": "source", "artifact": artifact.to_json(), "dims": dims_json(recipe.dims),
            "inputs": [t.to_json() for t in recipe.inputs], "outputs": list(recipe.outputs),
        }, lambda text, fraction: None)  # fmt: skip
        if not result["ok"]:
            raise from_json(result["error"])
        return artifact.with_signature(Signature.from_json(result["signature"]))
    except OptkitError as error:
        error.where = recipe.place_of(error.subject) if error.subject else None
        raise


def linear(path: Path, *, inner: bool = False, **save: Any) -> Path:
    """y = x w, the weight an initializer, or a constant inside the body of an If."""
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if inner:
        bodies = [
            helper.make_graph(
                [helper.make_node("Constant", [], [f"k{n}"], value=weight),
                 helper.make_node("MatMul", ["x", f"k{n}"], [f"y{n}"])],
                f"body{n}", [], [helper.make_tensor_value_info(f"y{n}", TensorProto.FLOAT, None)],
            )
            for n in (0, 1)
        ]  # fmt: skip
        yes = numpy_helper.from_array(np.array(True), "yes")
        nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=bodies[0], else_branch=bodies[1])]
        graph = helper.make_graph(nodes, "g", [x], [y], [yes])
    else:
        graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path, **save)
    return path


EXTERNAL: dict[str, Any] = {"save_as_external_data": True, "location": "m.data", "size_threshold": 0}
