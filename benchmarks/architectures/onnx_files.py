"""The models that the onnx package's own backend tests use, as far as they come with the package."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FOLDERS = ("light", "simple", "pytorch-converted", "pytorch-operator")


@cache
def _files() -> dict[str, Path]:
    import onnx.backend.test

    data = Path(onnx.backend.test.__file__).parent / "data"
    found = {f"onnx-{path.stem.replace('_', '-')}": path for path in sorted((data / "light").glob("*.onnx"))}
    for folder in FOLDERS[1:]:
        found |= {f"onnx-{path.parent.name.removeprefix('test_').replace('_', '-')}": path
                  for path in sorted((data / folder).glob("*/model.onnx"))}  # fmt: skip
    return found


def names() -> list[str]:
    """Every file, by a short name."""
    return list(_files())


def family(name: str) -> str:
    """Which folder of the package it is in."""
    path = _files()[name]
    return f"onnx {path.parent.name if path.parent.name == 'light' else path.parents[1].name}"


def prepared(name: str, folder: Path) -> Path:
    """The file to convert. In light models, a copy with random weights where the file has constants.

    One of an opset before 7, which onnxruntime cannot run, is brought up as optkit's error about it says.
    The package's light models have one number in place of all weights of a layer, so that their outputs hardly depend
    on the input. Drawn with the variance 2 / fan-in (He et al., Delving Deep into Rectifiers, 2015).
    """
    import onnx
    import onnx.version_converter
    from onnx import numpy_helper

    path, made = _files()[name], folder / f"{name}.onnx"
    model = onnx.load(path)
    if path.parent.name != "light" and all(o.domain or o.version >= 7 for o in model.opset_import):
        return path
    if made.exists():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    if path.parent.name != "light":
        onnx.save(onnx.version_converter.convert_version(model, 17), made)
        return made
    generator = np.random.default_rng(0)
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            kept.append(node)
            continue
        shape = tuple(int(n) for n in shapes[node.input[0]])
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 0
        value = (
            generator.standard_normal(shape, np.float32) * np.float32((2 / fan_in) ** 0.5)
            if fan_in
            else (numpy_helper.to_array(node.attribute[0].t).reshape(()) * np.ones(shape, np.float32))
        )
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.ir_version = max(model.ir_version, 8)  # before 4, every weight had to be an input too
    onnx.save(model, made)
    return made


def inputs(path: Path) -> dict[str, Any]:
    """A recipe's `inputs:` for a file's inputs, those of numbers with a range that its operators take."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    held = {t.name for t in model.graph.initializer}
    made = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        if value.name in held or not tensor.elem_type:
            continue
        numpy_name = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        dtype = {"object": "string"}.get(numpy_name, numpy_name)
        shape = [d.dim_value or d.dim_param for d in tensor.shape.dim]
        if all(isinstance(d, int) and d > 0 for d in shape):
            made[value.name] = {"shape": shape, "dtype": dtype, "range": [0.0, 2.0]}
    return made
