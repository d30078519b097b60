"""OpenVINO IR at rest: `model.xml` (graph) and `model.bin` (weights).

`save` writes it and records in the file itself (rt_info, "optkit") what each dynamic dimension is called; `describe`
reads that back. `inspect` (from `openvino_ir`) looks at what was written, by parsing the XML alone.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optkit.artifact import Dim, Shape, Signature, TensorSpec
from optkit.errors import SourceError, StepError, did_you_mean
from optkit.formats.openvino.core import core as core
from optkit.formats.openvino.core import load as load
from optkit.formats.openvino.core import quiet_conversion as quiet_conversion
from optkit.formats.openvino.core import reason as reason
from optkit.formats.openvino.ir import DTYPES
from optkit.formats.openvino.ir import inspect as inspect
from optkit.plugin import need

MAIN = "model.xml"
RECORD = ["optkit", "signature"]
COUNTED = re.compile(r"(.*/)?[A-Z][A-Za-z]*_\d+")


def files(path: Path) -> tuple[str, ...]:
    """The files that belong to the IR at `path`, relative to its folder."""
    weights = path.with_suffix(".bin")
    return (path.name, weights.name) if weights.exists() else (path.name,)


def compress_weights(model: Any) -> None:
    """Store weights that the graph rounds to 8 bits (constant, FakeQuantize) as integers, as NNCF does."""
    need("openvino._offline_transformations", "openvino").compress_quantize_weights_transformation(model)


# ------------------------------------------------------------------------------------------------ reading


def read(path: Path) -> Any:
    """The `openvino.Model` in an IR; weights are mapped from the file, not copied. Raises SourceError."""
    load()
    try:
        with path.open("rb") as handle:
            head = handle.read(4096)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}", subject="model") from error
    if b"<net" not in head:
        raise SourceError(
            f"{path} is not an OpenVINO IR: it has no <net> element",
            subject="model",
            hint="give the .xml file that `ovc` or save_model wrote",
        )
    try:
        return core().read_model(str(path))
    except RuntimeError as error:
        weights = path.with_suffix(".bin")
        if "weights" not in str(error):
            raise SourceError(
                f"{path} cannot be read: {reason(error)}",
                subject="model",
                hint="the file is damaged or of another version: write it again",
            ) from error
        state = "does not hold all of" if weights.exists() else "is missing; it holds"
        raise SourceError(
            f"{weights} {state} the weights of {path.name}",
            subject="model",
            hint=f"copy {path.name} and {weights.name} together",
        ) from error


def describe(path: Path, meta: Mapping[str, Any] | None = None) -> Signature:
    """Inputs and outputs of the IR at `path`, in the model's order; nothing is compiled.

    A dynamic dimension has the name `save` recorded, or `<tensor>_<axis>` in a file that optkit did not write.
    meta: may list the names to prefer where a tensor has several, under "inputs" and "outputs".
    Raises SourceError.
    """
    return signature_of(read(path), meta or {})


def signature_of(model: Any, meta: Mapping[str, Any] | None = None) -> Signature:
    """Inputs and outputs of an `openvino.Model`, as `describe` gives them."""
    recorded = _recorded(model)
    sides = []
    for side, ports in (("inputs", model.inputs), ("outputs", model.outputs)):
        shapes: dict[str, Any] = {spec["name"]: spec["shape"] for spec in recorded.get(side, ())}
        preferred = [*(meta or {}).get(side, ()), *shapes]
        specs: list[TensorSpec] = []
        for index, port in enumerate(ports):
            name = _port_name(port, index, side, preferred, {spec.name for spec in specs})
            specs.append(TensorSpec(name, _dtype(port, name), _shape(port.get_partial_shape(), name, shapes.get(name))))
        sides.append(tuple(specs))
    return Signature(*sides)


def _recorded(model: Any) -> dict[str, Any]:
    try:
        if model.has_rt_info(RECORD):
            found = json.loads(model.get_rt_info(RECORD).astype(str))
            if isinstance(found, dict):
                return found
    except (ValueError, TypeError):
        pass  # a record that somebody edited: names are then made up, and shapes are the file's own
    return {}


def _port_name(port: Any, index: int, side: str, preferred: Sequence[str], taken: set[str]) -> str:
    names = port.get_names() - taken
    for name in preferred:
        if name in names:
            return str(name)
    node = port.get_node()
    own = node.get_friendly_name()
    if own in names or not names:
        name = own if names or side == "inputs" else node.input_value(0).get_node().get_friendly_name()
        return str(name) if name not in taken else f"{side[:-1]}_{index}"
    return str(min(names))


def _dtype(port: Any, name: str) -> str:
    kind = port.get_element_type().to_string()
    if kind not in DTYPES:
        raise SourceError(f"tensor {name!r} has element type {kind}, which optkit does not know", subject="model")
    return DTYPES[kind]


def _shape(shape: Any, name: str, recorded: Sequence[Any] | None) -> Shape | None:
    if shape.rank.is_dynamic:
        return None
    dims: list[int | str] = []
    for axis, dim in enumerate(shape):
        said: Any = recorded[axis] if recorded and len(recorded) == shape.rank.get_length() else None
        dims.append(dim.get_length() if dim.is_static else said if isinstance(said, str) else f"{name}_{axis}")
    return tuple(dims)


# ------------------------------------------------------------------------------------------------ writing


def save(
    model: Any,
    out_dir: Path,
    inputs: Sequence[TensorSpec],
    dims: Mapping[str, Dim],
    *,
    outputs: Sequence[TensorSpec] = (),
    compress_to_fp16: bool = False,
) -> None:
    """Write `out_dir/model.xml` and `model.bin`, with the dynamic dimensions' names in the file.

    inputs: the recipe's inputs; each must be an input of the model. outputs: dims' names of outputs where the parent
    knows them; most are found anyway, by following each named input dimension through the graph.
    Operators that OpenVINO numbered itself are renumbered in graph order, so equal models give equal files.
    Raises StepError for an input that the model lacks, or a dimension that is declared dynamic but fixed in the model.
    """
    ov = load()
    ports = {name: port for port in model.inputs for name in port.get_names()}
    for spec in inputs:
        if spec.name not in ports:
            raise StepError(
                f"the model has no input {spec.name!r}",
                hint=did_you_mean(spec.name, ports),
                subject=f"inputs.{spec.name}",
            )
        _check_dynamic(spec, ports[spec.name].get_partial_shape(), dims)
    record = {
        "inputs": [{"name": s.name, "shape": list(s.shape) if s.shape is not None else None} for s in inputs],
        "outputs": _output_dims(ov, model, inputs, outputs),
    }
    model.set_rt_info(json.dumps(record), RECORD)
    _renumber(model)
    try:
        ov.save_model(model, str(out_dir / MAIN), compress_to_fp16=compress_to_fp16)
    except RuntimeError as error:
        if shutil.disk_usage(out_dir).free < 1 << 20:  # OpenVINO says no more than "iostream error"
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out_dir / MAIN)) from error
        hint = "look at the folder's permissions and its free space"
        raise StepError(f"OpenVINO could not write {out_dir / MAIN}: {reason(error)}", hint=hint) from error


def _check_dynamic(spec: TensorSpec, shape: Any, dims: Mapping[str, Dim]) -> None:
    if spec.shape is None or shape.rank.is_dynamic or shape.rank.get_length() != len(spec.shape):
        return  # a changed rank is the contract check's to name
    for axis, (declared, dim) in enumerate(zip(spec.shape, shape, strict=True)):
        known = dims.get(declared) if isinstance(declared, str) else None
        if isinstance(declared, str) and dim.is_static and not (known and known.min == known.max == dim.get_length()):
            raise StepError(
                f"axis {axis} of input {spec.name!r} is fixed at {dim.get_length()} in the converted "
                f"model, but {declared!r} is declared as dynamic",
                subject=f"inputs.{spec.name}",
                hint=f"export with {declared!r} dynamic, or write {dim.get_length()} in its place",
            )


def _output_dims(ov: Any, model: Any, inputs: Sequence[TensorSpec], known: Sequence[TensorSpec]) -> list[Any]:
    """Per output its shape with names; an axis without one is None.

    OpenVINO's shape inference carries a symbol from an input dimension to every dimension equal to it.
    """
    twin = model.clone()
    names = {spec.name: spec.shape for spec in inputs}
    symbols: dict[str, Any] = {}
    for port in twin.inputs:
        declared = next((names[name] for name in port.get_names() if name in names), None)
        shape = port.get_partial_shape()
        if declared is None or shape.rank.is_dynamic or shape.rank.get_length() != len(declared):
            continue
        marked = []
        for said, dim in zip(declared, shape, strict=True):
            if dim.is_dynamic and isinstance(said, str):
                dim = ov.Dimension(dim.get_min_length(), dim.get_max_length())
                dim.set_symbol(symbols.setdefault(said, ov.Symbol()))
            marked.append(dim)
        port.get_node().set_partial_shape(ov.PartialShape(marked))
    twin.validate_nodes_and_infer_types()
    parents = {spec.name: spec.shape for spec in known if spec.shape is not None}
    found: list[Any] = []
    for port, spec in zip(twin.outputs, signature_of(model).outputs, strict=True):
        shape, parent = port.get_partial_shape(), parents.get(spec.name)
        if spec.shape is None:
            found.append({"name": spec.name, "shape": None})
            continue
        dims: list[Any] = []
        for axis, dim in enumerate(shape):
            carried = [name for name, symbol in symbols.items() if dim.has_symbol() and dim.get_symbol() == symbol]
            theirs = parent[axis] if parent and len(parent) == len(spec.shape) else None
            dims.append(
                spec.shape[axis]
                if dim.is_static
                else carried[0]
                if carried
                else theirs
                if isinstance(theirs, str)
                else None
            )
        found.append({"name": spec.name, "shape": dims})
    return found


def _renumber(model: Any) -> None:
    """Names that OpenVINO made from a process-wide counter ("Reshape_4711") become the same in every process."""
    operators = model.get_ordered_ops()
    counted = [op for op in operators if _is_counted(op)]
    given = {op.get_friendly_name() for op in operators} - {op.get_friendly_name() for op in counted}
    for index, op in enumerate(counted):
        name = f"{op.get_type_name()}_{index}"
        op.set_friendly_name(name if name not in given else f"{name}_auto")
    for op in operators:
        if op.get_type_name() in ("Loop", "TensorIterator"):
            _renumber(op.get_function())


def _is_counted(op: Any) -> bool:
    name = op.get_friendly_name()
    if name == op.get_name():
        return True
    # A folded subgraph leaves a constant with the counted name of its last operator, and no tensor name.
    return op.get_type_name() == "Constant" and bool(COUNTED.fullmatch(name)) and name not in op.output(0).get_names()


def name_by_place(model: Any) -> None:
    """Names from the process-wide counter, also those an operator took over from one it replaced, by position.

    For models whose source has no operator names that look like them (torch, TFLite): equal models give equal files,
    and names that can be relied on.
    """
    model.set_friendly_name("model")
    for index, op in enumerate(model.get_ordered_ops()):
        if COUNTED.fullmatch(op.get_friendly_name()):
            op.set_friendly_name(f"{op.get_type_name()}_{index}")


def rename(model: Any, input_names: Sequence[str], output_names: Sequence[str]) -> None:
    """Give a model's inputs and outputs these names, in the model's order, and no others. Raises StepError.

    An output that is an input passed through gets a Convert to its own type: one tensor cannot keep two names.
    """
    load()
    import openvino.opset15 as ops

    for side, ports, names in (("inputs", model.inputs, input_names), ("outputs", model.outputs, output_names)):
        if len(ports) != len(names) or len(set(names)) != len(names):
            raise StepError(
                f"the model has {len(ports)} {side}, but the names given are {', '.join(names)}", subject=side
            )
    for port in model.outputs:
        end = port.get_node().input(0)
        source = end.get_source_output()
        if source.get_node().get_type_name() == "Parameter":
            end.replace_source_output(ops.convert(source, source.get_element_type().to_string()).output(0))
    model.validate_nodes_and_infer_types()
    for port, name in zip(model.outputs, output_names, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(model.inputs, input_names, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name)


def bound_dims(model: Any, inputs: Sequence[TensorSpec], dims: Mapping[str, Dim]) -> tuple[str, ...]:
    """Write the declared ranges into a model's dynamic input dimensions; returns the names of those bounded.

    GPU and NPU plugins plan memory from them. A range of one size is left open, and so is everything if any dynamic
    dimension of an input or output would come out fixed.
    """
    ov = load()
    names = {spec.name: spec.shape for spec in inputs}
    shapes: dict[int, Any] = {}
    done: list[str] = []
    for index, port in enumerate(model.inputs):
        declared = next((names[name] for name in port.get_names() if name in names), None)
        shape = port.get_partial_shape()
        if declared is None or shape.rank.is_dynamic or shape.rank.get_length() != len(declared):
            continue
        wanted = []
        for said, dim in zip(declared, shape, strict=True):
            span = dims.get(said) if isinstance(said, str) and dim.is_dynamic else None
            if span is not None and span.min < span.max:
                dim = ov.Dimension(span.min, span.max)
                done.append(str(said))
            wanted.append(dim)
        shapes[index] = ov.PartialShape(wanted)
    if not done:
        return ()
    twin = model.clone()
    try:
        _set_shapes(twin, shapes)
    except RuntimeError:
        return ()  # the model's own shape rules refuse the range: leave it open, the checks run over it anyway
    pairs = zip([*model.inputs, *model.outputs], [*twin.inputs, *twin.outputs], strict=True)
    if any(_fixed(before.get_partial_shape(), after.get_partial_shape()) for before, after in pairs):
        return ()
    _set_shapes(model, shapes)
    return tuple(dict.fromkeys(done))


def _set_shapes(model: Any, shapes: Mapping[int, Any]) -> None:
    """Not `model.reshape`, which also rewrites the operators that look as if they had a size built in."""
    for index, shape in shapes.items():
        model.inputs[index].get_node().set_partial_shape(shape)
    model.validate_nodes_and_infer_types()


def _fixed(before: Any, after: Any) -> bool:
    if before.rank.is_dynamic or after.rank.is_dynamic:
        return bool(before.rank.is_dynamic != after.rank.is_dynamic)
    return any(a.is_dynamic and b.is_static for a, b in zip(before, after, strict=True))
