"""What an OpenVINO IR on disk holds, from its XML alone: operators, constants, how the weights are stored.

Nothing here needs OpenVINO, and nothing is as OpenVINO would like to see it: a pass's `confirm` looks at the file.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from optkit.errors import SourceError, StepError

# Element types as an IR spells them; types numpy and the recipe do not have stay as they are (nf4, f8e4m3).
DTYPES = {
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "bf16": "bfloat16",
    "i4": "int4",
    "u4": "uint4",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
    "boolean": "bool",
    "string": "string",
}
FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})
INDICES = frozenset({"int64", "int32", "int16", "uint64", "uint32", "uint16", "bool", "string"})


@dataclass(frozen=True)
class Constant:
    """One constant of a graph.

    stored: "plain" as it is used; "compressed" behind a Convert, so stored in a smaller type than it is used in;
    "zero_point" the offset of a compressed constant.
    user: type of the operator that uses it, past the Convert and scaling of a compressed one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int
    stored: str
    user: str

    @property
    def elements(self) -> int:
        return prod(self.shape)


def parse(path: Path) -> ElementTree.Element:
    """The root of an IR's XML. Raises SourceError."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise SourceError(f"{path} cannot be read: {error}", subject="model") from error
    if root.tag != "net":
        raise SourceError(f"{path} is not an OpenVINO IR: its root is <{root.tag}>", subject="model")
    return root


def constants(root: ElementTree.Element) -> tuple[Constant, ...]:
    """Every constant of the graph and of its bodies (If, Loop), in file order."""
    return tuple(constant for graph in _graphs(root) for constant in _constants_of(graph))


def _graphs(root: ElementTree.Element) -> Iterator[ElementTree.Element]:
    return (element for element in root.iter() if element.find("layers") is not None)


def _constants_of(graph: ElementTree.Element) -> Iterator[Constant]:
    layers = {layer.get("id", ""): layer for layer in graph.iterfind("layers/layer")}
    users: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for edge in graph.iterfind("edges/edge"):
        users[edge.get("from-layer", "")].append((edge.get("to-layer", ""), edge.get("to-port", "")))
    for key, layer in layers.items():
        data = layer.find("data")
        if layer.get("type") != "Const" or data is None:
            continue
        kind = data.get("element_type", "")
        dtype = DTYPES.get(kind, kind)
        shape = tuple(int(size) for size in data.get("shape", "").split(",") if size.strip())
        stored, user = _use(key, dtype, layers, users)
        yield Constant(
            layer.get("name", ""), dtype, shape, int(data.get("offset", 0)), int(data.get("size", 0)), stored, user
        )


def _use(
    key: str, dtype: str, layers: dict[str, ElementTree.Element], users: dict[str, list[tuple[str, str]]]
) -> tuple[str, str]:
    """How a constant is stored, and the type of the operator that uses it."""
    stored = "plain"
    for step in range(6):  # Convert, Subtract, Multiply, Reshape, Convert, and the operator itself
        following = users.get(key) or []
        if not following:
            return stored, ""
        key, port = following[0]
        kind = layers[key].get("type", "")
        if step == 0 and kind == "Convert" and dtype not in INDICES and dtype != "float32":
            stored = "compressed"
        elif stored == "plain" or kind not in {"Convert", "Subtract", "Multiply", "Reshape"}:
            return stored, kind
        elif kind == "Subtract" and port == "1":
            return "zero_point", kind
    return stored, ""


def require_float(path: Path) -> None:
    """Raise StepError for an IR whose activations or weights are integers already: rounding twice loses twice."""
    root = parse(path)
    low = {c.dtype for c in constants(root) if c.stored == "compressed"} & {"int8", "uint8", "int4", "uint4"}
    if operators(root)["FakeQuantize"] or low:
        raise StepError("the model is quantised already", subject="from",
                        hint="take the float model this one was made from")  # fmt: skip


def operators(root: ElementTree.Element) -> Counter[str]:
    """How many layers of each type, bodies included; types as the file spells them."""
    return Counter(layer.get("type", "") for layer in root.iter("layer"))


def runtime_version(root: ElementTree.Element) -> str:
    """The OpenVINO that wrote the file, "" where it does not say."""
    said = root.find("rt_info/Runtime_version")
    return said.get("value", "") if said is not None else ""


def inspect(path: Path) -> dict[str, Any]:
    """JSON data about the IR at `path`: operator counts, parameters, bytes, how weights are stored.

    parameters: elements of all constants but integer indices and shapes. weight_bytes: per dtype, a constant that
    several layers share counted once. compressed: tensors stored in a smaller type than they are used in, per dtype.
    Raises SourceError, also for a `model.bin` that is missing or too short.
    """
    root = parse(path)
    found = constants(root)
    weights = path.with_suffix(".bin")
    size = weights.stat().st_size if weights.exists() else 0
    if (end := max((c.offset + c.size_bytes for c in found), default=0)) > size:
        state = f"has {size} bytes and should have {end}" if weights.exists() else "is missing"
        raise SourceError(
            f"{weights} {state}: it holds the weights of {path.name}",
            subject="model",
            hint=f"copy {path.name} and {weights.name} together",
        )
    counts = operators(root)
    by_dtype: Counter[str] = Counter()
    for constant in {c.offset: c for c in found}.values():
        by_dtype[constant.dtype] += constant.size_bytes
    return {
        "format": "openvino",
        "ir_version": int(root.get("version", 0)),
        "runtime": runtime_version(root),
        "operators": dict(sorted((k, n) for k, n in counts.items() if k not in {"Const", "Parameter", "Result"})),
        "parameters": sum(c.elements for c in found if c.dtype not in INDICES and c.stored != "zero_point"),
        "size_bytes": path.stat().st_size + size,
        "weight_bytes": dict(sorted(by_dtype.items())),
        "fake_quantize": counts["FakeQuantize"],
        "compressed": dict(sorted(Counter(c.dtype for c in found if c.stored == "compressed").items())),
    }
