"""An ONNX model at rest: a folder with `model.onnx` and, past a size, `model.onnx.data` beside it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal

from optkit.artifact import Signature, TensorSpec
from optkit.errors import SourceError, StepError
from optkit.formats.onnx import weights as onnx_weights
from optkit.plugin import need

if TYPE_CHECKING:
    from optkit.formats.onnx.weights import Payloads

MAIN = "model.onnx"
DATA = "model.onnx.data"
EXTERNAL_FROM = 1 << 30  # bytes; a protobuf message ends at 2 GiB

STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger",
              "ConvInteger", "QLinearConv", "QLinearMatMul", "com.microsoft.GatherBlockQuantized",
              "com.microsoft.MatMulNBits")  # fmt: skip
_INTEGER_WEIGHTS = ("int8", "uint8", "int4", "uint4")


def load(path: Path, weights: bool = True) -> Any:
    """The ModelProto of a file.

    With `weights=False` the values of tensors above 1 KiB stay on disk, as references relative to the file's folder
    (`onnx_weights.read` gets them); those of a large file that embeds its weights refer to that file itself.

    Raises SourceError where the file is missing, is not ONNX, is newer than the installed onnx, or lacks a sidecar.
    """
    onnx = need("onnx")
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if not path.is_file():
        raise SourceError(
            f"there is no ONNX file at {path}",
            hint="check the path: it must name the .onnx file itself",
            subject="model",
        )
    try:
        model = onnx_weights.parse(path)
    except (DecodeError, ValueError) as error:
        raise _not_onnx(path, f"{type(error).__name__}: {error}") from error
    if not model.ir_version or not model.graph.output or not model.opset_import:
        raise _not_onnx(path, "it has no IR version, opset or graph output")
    if model.ir_version > onnx.IR_VERSION:
        raise SourceError(
            f"{path.name} has IR version {model.ir_version}, and the installed onnx {onnx.__version__} "
            f"knows versions up to {onnx.IR_VERSION}",
            subject="model",
            hint="pip install -U onnx onnxruntime, or export the model with a lower ir_version",
        )
    _sidecars(model, path)
    limit = (1 << 62) if weights else onnx_weights.SMALL
    onnx_weights.load_small(onnx_weights.all_tensors(model), path.parent, limit)
    return model


def save(
    model: Any,
    out_dir: Path,
    external: bool | Literal["auto"] = "auto",
    *,
    source: Path | None = None,
    payloads: Payloads | None = None,
) -> Path:
    """Write `model.onnx` into a folder, with `model.onnx.data` beside it for models from 1 GiB on; returns its path.

    source: the folder that the model's references are relative to. payloads: initializer name to a function that
    gives its values, for tensors made with `onnx_weights.placeholder`. One tensor at a time is held. Raises StepError
    where one file is asked for and the model is too large for that.
    """
    path, size = out_dir / MAIN, size_bytes(model)
    if external == "auto":
        external = size >= EXTERNAL_FROM
    if not external and size >= (1 << 31) - (1 << 20):
        raise StepError(
            f"a model of {size} bytes does not fit one ONNX file, which ends at 2 GiB",
            hint='save it with external="auto"',
        )
    if external:
        onnx_weights.write_external(model, path, DATA, source or out_dir, payloads or {})
    else:
        onnx_weights.write_embedded(model, path, source or out_dir, payloads or {})
    return path


def size_bytes(model: Any) -> int:
    """Bytes of a model with all its weights, wherever they lie."""
    elsewhere = sum(onnx_weights.size_of(t) for t in onnx_weights.all_tensors(model) if onnx_weights.reference(t))
    return int(model.ByteSize()) + elsewhere


def files(path: Path) -> tuple[str, ...]:
    """Every file of a model, relative to its folder: the ONNX file first, then external data.

    Raises SourceError where external data is missing, too short, or outside the folder.
    """
    return (path.name, *_sidecars(load(path, weights=False), path))


def describe(path: Path, meta: Mapping[str, Any]) -> Signature:
    """Inputs and outputs of a model, without its weights. An unnamed dynamic axis is called `<tensor>_<axis>`."""
    graph = load(path, weights=False).graph
    initializers = {t.name for t in graph.initializer}
    return Signature(
        tuple(_spec(v, path) for v in graph.input if v.name not in initializers),
        tuple(_spec(v, path) for v in graph.output),
    )


def inspect(path: Path) -> dict[str, Any]:
    """JSON data about a model: opsets, operator counts, parameters, bytes, precision, external data, producer."""
    model = load(path, weights=False)
    nodes = list(all_nodes(model.graph))
    kinds: dict[str, dict[str, int]] = {}
    for tensor in onnx_weights.all_tensors(model):
        row = kinds.setdefault(dtype_name(tensor.data_type), {"tensors": 0, "parameters": 0, "bytes": 0})
        row["tensors"] += 1
        row["parameters"] += math.prod(tensor.dims)
        row["bytes"] += onnx_weights.size_of(tensor)
    operators = Counter(operator(node) for node in nodes)
    sidecars = _sidecars(model, path)
    return {
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "ir_version": model.ir_version,
        "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "nodes": len(nodes),
        "operators": dict(sorted(operators.items())),
        "parameters": sum(row["parameters"] for kind, row in kinds.items() if _is_weight(kind)),
        "weights": {kind: kinds[kind] for kind in sorted(kinds)},
        "precision": _precision(kinds, operators),
        "quantised": {name: operators[name] for name in _QUANTISED if operators[name]},
        "portable": all(node.domain in STANDARD_DOMAINS for node in nodes),
        "external_data": list(sidecars),
        "size_bytes": path.stat().st_size + sum((path.parent / name).stat().st_size for name in sidecars),
    }


def all_nodes(graph: Any) -> Iterator[Any]:
    """Every node of a graph, those of its subgraphs after the node that holds them."""
    for node in graph.node:
        yield node
        for subgraph in subgraphs(node):
            yield from all_nodes(subgraph)


def subgraphs(node: Any) -> list[Any]:
    """The bodies of a control-flow node."""
    found = []
    for attribute in node.attribute:
        if attribute.HasField("g"):
            found.append(attribute.g)
        found += list(attribute.graphs)
    return found


def operator(node: Any) -> str:
    """An operator's name, with its domain where that is not the standard one."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def count_operators(model: Any) -> Counter[str]:
    """How often each operator occurs, subgraphs included."""
    return Counter(operator(node) for node in all_nodes(model.graph))


def opset(model: Any) -> int:
    """The version of the standard operator set; 0 where the model imports none."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def dtype_name(kind: int) -> str:
    """optkit's name of an ONNX element type: "float32" for FLOAT."""
    import onnx

    name: str = onnx.TensorProto.DataType.Name(kind)
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())


def _spec(value: Any, path: Path) -> TensorSpec:
    if value.type.WhichOneof("value") != "tensor_type":
        raise SourceError(
            f"{path.name}: {value.name!r} is a {value.type.WhichOneof('value') or 'value of no type'}; "
            "only tensors can be inputs and outputs",
            subject="model",
            hint="export the model with tensor inputs and outputs (ZipMap and sequences switched off)",
        )
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return TensorSpec(value.name, dtype_name(kind.elem_type), None)
    shape: list[int | str] = []
    for axis, dim in enumerate(kind.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            shape.append(int(dim.dim_value))
        else:
            shape.append(dim.dim_param or f"{value.name}_{axis}")
    return TensorSpec(value.name, dtype_name(kind.elem_type), tuple(shape))


def _sidecars(model: Any, path: Path) -> tuple[str, ...]:
    ends: dict[str, int] = {}
    for tensor in onnx_weights.all_tensors(model):
        try:
            where = onnx_weights.reference(tensor)
        except ValueError as error:
            raise _not_onnx(path, str(error)) from error
        if where:
            ends[where[0]] = max(ends.get(where[0], 0), where[1] + where[2])
    for location, end in ends.items():
        sidecar = path.parent / location
        posix, windows = PurePosixPath(location), PureWindowsPath(location)
        if (
            not location
            or posix.is_absolute()
            or windows.drive
            or windows.root
            or ".." in windows.parts
            or not sidecar.resolve().is_relative_to(path.parent.resolve())
        ):
            raise SourceError(
                f"{path.name} keeps weights at {location!r}, outside its own folder",
                subject="model",
                hint="save the model again with its external data beside it",
            )
        if not sidecar.is_file():
            raise SourceError(
                f"{path.name} keeps weights in {location!r}, which is not beside it: it was left behind or renamed",
                hint=f"put {location} into {path.parent}; a model is its whole folder",
                subject="model",
            )
        if sidecar.stat().st_size < end:
            raise SourceError(
                f"{location} has {sidecar.stat().st_size} bytes and {path.name} needs {end} of it: it is "
                "cut short or belongs to another model",
                subject="model",
                hint="copy both files again from where they were made",
            )
    return tuple(sorted(name for name in ends if name != path.name))


def _not_onnx(path: Path, why: str) -> SourceError:
    with path.open("rb") as handle:
        start = handle.read(64)
    if start.startswith(b"version https://git-lfs"):
        return SourceError(
            f"{path.name} is a Git LFS pointer, not the model itself", hint="git lfs pull", subject="model"
        )
    hint = "an empty file: export it again" if not start else "export it again, or check what was downloaded"
    return SourceError(f"{path.name} is not an ONNX model or is damaged ({why})", hint=hint, subject="model")


def _is_weight(kind: str) -> bool:
    return kind.startswith(("float", "bfloat")) or kind in _INTEGER_WEIGHTS


def _precision(kinds: Mapping[str, Mapping[str, int]], operators: Mapping[str, int]) -> str:
    """The share of each weight type, and how a quantised model is quantised: "int8 99 %, float32 1 % (QDQ)"."""
    counts = {kind: row["parameters"] for kind, row in kinds.items() if _is_weight(kind) and row["parameters"]}
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{kind} {_percent(n / total)}" for kind, n in ordered) if len(ordered) > 1 else "".join(counts)
    if operators.get("DynamicQuantizeLinear"):
        how = "dynamic"
    elif operators.get("QuantizeLinear"):
        how = "QDQ"
    elif any(operators.get(name) for name in _QUANTISED):
        how = "quantised"
    else:
        how = ""
    return " ".join(filter(None, (shares or "no weights", f"({how})" if how else "")))


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
