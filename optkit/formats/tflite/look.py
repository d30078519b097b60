"""What is in a TFLite file: operators, weights, quantised tensors, signatures; and what of a contract it lacks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optkit.formats.tflite.model import (
    Contract,
    contract,
    convertible,
    dtype_of,
    file_shape,
    interpreter,
    is_quantised,
    kind_of,
    read,
    signatures,
    text_of,
)
from optkit.plugin import need

REAL = ("float32", "float16", "bfloat16", "int8", "int4")


def operator_names(model: Any) -> list[str]:
    """Per operator code its name: "CONV_2D", or the custom operator's own."""
    kinds = need("ai_edge_litert.schema_py_generated", "ai-edge-litert").BuiltinOperator
    names = {value: name for name, value in vars(kinds).items() if isinstance(value, int)}
    found = []
    for code in model.operatorCodes:
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        custom = text_of(code.customCode) if code.customCode else ""
        found.append(custom if names.get(number) == "CUSTOM" and custom else names.get(number, str(number)))
    return found


def operations(model: Any) -> Iterator[tuple[str, Any, Any]]:
    """Operator name, operator and graph of every operator in the file."""
    names = operator_names(model)
    for graph in model.subgraphs:
        for op in graph.operators or ():
            yield names[op.opcodeIndex], op, graph


def constants(model: Any) -> dict[int, Any]:
    """Buffer number to a tensor that has it, for every constant; signatures share buffers."""
    found: dict[int, Any] = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            if data is not None and len(data):
                found.setdefault(tensor.buffer, tensor)
    return found


def inspect(path: Path) -> dict[str, Any]:
    """JSON data about a model: operators and their versions, weights by type, quantised tensors, signatures, bytes."""
    model = read(path)
    interpreter(path)
    names = operator_names(model)
    versions = {name: code.version for name, code in sorted(zip(names, model.operatorCodes, strict=True),
                                                            key=lambda pair: pair[0])}  # fmt: skip
    weights: dict[str, dict[str, int]] = {}
    held = constants(model)
    for number, tensor in held.items():
        row = weights.setdefault(kind_of(tensor), {"tensors": 0, "parameters": 0, "bytes": 0})
        row["tensors"] += 1
        row["parameters"] += math.prod(tensor.shape if tensor.shape is not None else ())
        row["bytes"] += len(model.buffers[number].data)
    tensors = [t for graph in model.subgraphs for t in graph.tensors]
    activations = Counter(kind_of(t) for t in tensors if t.buffer not in held)
    agreed = contract(model)
    real = {kind: row["parameters"] for kind, row in weights.items() if kind in REAL}
    total = sum(real.values())
    shares = sorted(real.items(), key=lambda item: -item[1])
    return {
        "schema": model.version,
        "description": text_of(model.description),
        "operators": dict(sorted(Counter(name for name, _, _ in operations(model)).items())),
        "operator_versions": versions,
        "parameters": total,
        "weights": {kind: weights[kind] for kind in sorted(weights)},
        "activations": dict(sorted(activations.items())),
        "quantised": {
            "tensors": sum(is_quantised(t) for t in tensors),
            "per_channel": sum(is_quantised(t) and len(t.quantization.scale) > 1 for t in tensors),
        },
        "precision": ", ".join(f"{kind} {100 * n / total:.3g} %" for kind, n in shares) or "no weights",
        "signatures": file_signatures(model),
        "fixed_sizes": {name: list(sizes) for name, sizes in agreed.sizes.items()},
        "padded": list(agreed.padded),
        "channels_last": list(agreed.channels_last),
        "metadata": [text_of(m.name) for m in model.metadata or ()],
        "size_bytes": path.stat().st_size,
    }  # fmt: skip


def file_signatures(model: Any) -> dict[str, Any]:
    """What the file itself takes and gives, by signature: dtypes, shapes and scales before any conversion."""
    return {
        key or "(none)": {
            "inputs": {name: _held(t, name) for name, t in inputs.items()},
            "outputs": {name: _held(t, name) for name, t in outputs.items()},
        }
        for key, (inputs, outputs) in signatures(model).items()
    }


def _held(tensor: Any, name: str) -> dict[str, Any]:
    held: dict[str, Any] = {"dtype": dtype_of(tensor, name), "shape": list(file_shape(tensor, name))}
    if is_quantised(tensor):
        held |= {"scale": float(tensor.quantization.scale[0]), "zero_point": int(tensor.quantization.zeroPoint[0])}
    return held


def differences(model: Any, agreed: Contract, wanted: Sequence[Mapping[str, int]]) -> list[str]:
    """What of a contract the file does not hold: a signature, a name, a dtype that cannot be converted, a shape."""
    found = signatures(model)
    complaints = []
    for sizes in wanted:
        key = agreed.key(sizes)
        if key not in found:
            complaints.append(f"there is no signature {key!r}, only {', '.join(found)}")
            continue
        inputs, outputs = found[key]
        for side, specs, tensors in (("input", agreed.inputs, inputs), ("output", agreed.outputs, outputs)):
            names = [spec.name for spec in specs]
            if sorted(names) != sorted(tensors):
                complaints.append(f"the {side}s of {key} are {', '.join(tensors)}, not {', '.join(names)}")
                continue
            for spec in specs:
                tensor = tensors[spec.name]
                dtype, shape = dtype_of(tensor, spec.name), file_shape(tensor, spec.name)
                if not convertible(spec.dtype, dtype, is_quantised(tensor)):
                    complaints.append(f"{side} {spec.name!r} is {dtype}, not {spec.dtype}")
                must = agreed.file_shape(spec, sizes) if spec.shape is not None else shape
                if side == "input" and (
                    len(shape) != len(must) or any(isinstance(a, str) != isinstance(b, str) or (a != b and
                                                   isinstance(a, int)) for a, b in zip(shape, must, strict=True))
                ):  # fmt: skip
                    complaints.append(f"{side} {spec.name!r} of {key} has shape ({', '.join(map(str, shape))}), "
                                      f"not ({', '.join(map(str, must))})")  # fmt: skip
    return complaints


def scope(op: Any, graph: Any) -> str:
    """What ai-edge-quantizer matches its patterns with: the names of an operator's outputs."""
    return "".join(text_of(graph.tensors[i].name) + ";" for i in op.outputs if i != -1)


def shown(model: Any) -> str:
    """A file's most frequent operators, for a hint."""
    counts = Counter(name for name, _, _ in operations(model))
    return ", ".join(f"{n} {name}" for name, n in counts.most_common(8))


def counts(model: Any) -> Counter[str]:
    """How many constants have integers or float16 in place of float32, and how many activations integers."""
    held = constants(model)
    found: Counter[str] = Counter()
    for number, tensor in held.items():
        dtype = kind_of(tensor)
        if (dtype in ("int8", "int4") and is_quantised(tensor)) or dtype == "float16":
            found["weights"] += 1
            found["per_channel"] += dtype != "float16" and len(tensor.quantization.scale) > 1
            found["weight_bytes"] += len(model.buffers[number].data)
    for graph in model.subgraphs:
        found["activations"] += sum(t.buffer not in held and is_quantised(t) for t in graph.tensors)
    return found


def left_float(model: Any) -> Counter[str]:
    """Operators with a constant of two or more axes that is still float32, and how often."""
    return Counter(name for name, op, graph in operations(model) if _float_weight(model, op, graph))


def _float_weight(model: Any, op: Any, graph: Any) -> bool:
    for index in op.inputs:
        tensor = graph.tensors[index] if index != -1 else None
        if tensor is None or tensor.shape is None or len(tensor.shape) < 2:
            continue
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data) and kind_of(tensor) == "float32":
            return True
    return False


def weight(model: Any, op: Any, graph: Any) -> Any:
    """The constant an operator multiplies with, or the one behind a DEQUANTIZE; None where it is no constant."""
    made = {i: other for other in graph.operators for i in other.outputs}
    for index in list(op.inputs)[:3]:
        origin = index
        if index in made and len(made[index].inputs) == 1:
            origin = made[index].inputs[0]
        tensor = graph.tensors[origin] if origin != -1 else None
        if tensor is None or tensor.shape is None or len(tensor.shape) < 2:
            continue
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data):
            return tensor
    return None
