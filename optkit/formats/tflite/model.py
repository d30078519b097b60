"""A TFLite model at rest: one file, `model.tflite`, with the recipe's contract in its metadata.

TFLite has no names for dims, no 64-bit inputs on many targets, and shapes that are fixed unless every kernel on the way
can be resized. `Contract` says what a session takes and gives, and how that maps to what the file holds; `write` puts
it into the file ("optkit" in the metadata), `contract` reads it back or makes one up from the file alone.
"""

from __future__ import annotations

import json
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optkit.artifact import Signature, TensorSpec
from optkit.errors import SourceError, StepError
from optkit.formats.tflite.noise import captured
from optkit.plugin import need

MAIN = "model.tflite"
RECORD = b"optkit"
DEFAULT = "serving_default"
LIMIT = (1 << 31) - (1 << 20)  # bytes of a flatbuffer: its offsets are signed 32-bit
DTYPES = {
    "FLOAT32": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16", "FLOAT64": "float64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32",
    "UINT64": "uint64", "BOOL": "bool", "STRING": "string", "INT4": "int4",
}  # fmt: skip


@dataclass(frozen=True)
class Contract:
    """What a session takes and gives, and how the file serves it.

    inputs, outputs: as the recipe has them. A dtype here may be wider than the file's (int64 over int32, float32 over
        int8 or int16 with a scale): the session converts at the border.
    sizes: dims that the file holds at some sizes only, one signature for each combination; others resize.
    padded: those of them whose sizes in between are filled up with zeros, and cut off the outputs again. A dim that is
        not padded is the batch, which is split into pieces the file has.
    channels_last: inputs and outputs that the file holds channels last, though the recipe has them channels first.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    padded: tuple[str, ...] = ()
    channels_last: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "inputs": [t.to_json() for t in self.inputs],
            "outputs": [t.to_json() for t in self.outputs],
            "sizes": {name: list(sizes) for name, sizes in self.sizes.items()},
            "padded": list(self.padded),
            "channels_last": list(self.channels_last),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Contract:
        return Contract(
            tuple(TensorSpec.from_json(t) for t in data["inputs"]),
            tuple(TensorSpec.from_json(t) for t in data["outputs"]),
            {name: tuple(sizes) for name, sizes in data["sizes"].items()},
            tuple(data["padded"]),
            tuple(data["channels_last"]),
        )

    def key(self, sizes: Mapping[str, int]) -> str:
        """The signature that serves these sizes: "batch_8_sequence_32", or the default where all dims resize."""
        return "_".join(f"{name}_{sizes[name]}" for name in self.sizes) or DEFAULT

    def file_shape(self, spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int | str, ...]:
        """The shape the file must have for a tensor in the signature of these sizes; a name is an axis that resizes."""
        shape = tuple(sizes.get(d, d) if isinstance(d, str) else d for d in spec.shape or ())
        return (shape[0], *shape[2:], shape[1]) if spec.name in self.channels_last else shape


# ------------------------------------------------------------------------------------------------ reading


def read(path: Path) -> Any:
    """The file as a `ModelT`, whose buffers are views of the mapped file. Raises SourceError."""
    utils = need("ai_edge_litert.tools.flatbuffer_utils", "ai-edge-litert")
    try:
        with path.open("rb") as handle:
            head = handle.read(64)
            if head[4:8] != b"TFL3":
                raise _not_tflite(path, head)
            whole = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}", subject="model") from error
    try:
        model = utils.read_model_from_bytearray(whole)
    except struct.error as error:
        raise _damaged(path, "it is shorter than its own offsets say") from error
    except IndexError as error:
        raise _damaged(path, "a tensor names a buffer that is not there") from error
    except Exception as error:  # numpy and flatbuffers errors: the offsets in the file are wrong
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if not model.subgraphs:
        raise _damaged(path, "it has no graph")
    if wrong := _dangling(model):
        raise _damaged(path, wrong)
    return model


def _dangling(model: Any) -> str:
    """The first reference that leads nowhere; "" where all of them lead to something."""
    buffers, codes, graphs = (len(part or ()) for part in (model.buffers, model.operatorCodes, model.subgraphs))
    for number, graph in enumerate(model.subgraphs):
        tensors = len(graph.tensors if graph.tensors is not None else ())
        for op in graph.operators or ():
            if not 0 <= op.opcodeIndex < codes:
                return f"graph {number} names operator code {op.opcodeIndex} of {codes}"
        ports = [graph, *(graph.operators or ())]
        named = [i for port in ports for side in (port.inputs, port.outputs) if side is not None for i in side]
        if wrong := [i for i in named if not -1 <= i < tensors]:
            return f"graph {number} names tensor {wrong[0]} of {tensors}"
    for definition in model.signatureDefs or ():
        if not 0 <= definition.subgraphIndex < graphs:
            return f"a signature names graph {definition.subgraphIndex} of {graphs}"
        tensors = len(model.subgraphs[definition.subgraphIndex].tensors)
        entries = [*(definition.inputs or ()), *(definition.outputs or ())]
        if wrong := [entry.tensorIndex for entry in entries if not 0 <= entry.tensorIndex < tensors]:
            return f"a signature names tensor {wrong[0]} of {tensors}"
    if any(not 0 <= entry.buffer < buffers for entry in model.metadata or ()):
        return "its metadata name a buffer that is not there"
    return ""


_RESOLVERS = {"": "AUTO", "xnnpack": "AUTO", "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "reference": "BUILTIN_REF"}


def interpreter(path: Path, threads: int = 1, kernels: str = "", latest: bool = False) -> Any:
    """An `ai_edge_litert` Interpreter, which has verified the file. Raises SourceError.

    kernels: "xnnpack", "builtin" or "reference"; "" leaves it to LiteRT. latest: XNNPACK's operators that are not on by
    default yet.
    """
    runtime = need("ai_edge_litert.interpreter", "ai-edge-litert")
    try:
        with captured():
            return runtime.Interpreter(
                model_path=str(path), num_threads=threads, experimental_default_delegate_latest_features=latest,
                experimental_op_resolver_type=runtime.OpResolverType[_RESOLVERS[kernels]],
            )  # fmt: skip
    except (ValueError, RuntimeError, OSError) as error:
        if found := re.search(r"builtin opcode '(\w+)' version '(\d+)'", str(error)):
            raise SourceError(
                f"{path} has the operator {found[1]} (version {found[2]}), which the installed LiteRT cannot run",
                hint="pip install -U ai-edge-litert; or replace the operator in the model, or deliver ONNX or OpenVINO",
                subject="model",
                details=str(error),
            ) from error
        raise _damaged(path, str(error).strip().splitlines()[0] if str(error).strip() else "") from error


def _not_tflite(path: Path, head: bytes) -> SourceError:
    if head.startswith(b"version https://git-lfs"):
        return SourceError(f"{path.name} is a Git LFS pointer, not the model itself", hint="git lfs pull",
                           subject="model")  # fmt: skip
    if not head:
        return SourceError(f"{path} is empty, and so is not a TFLite model", hint="copy it again, or convert it again",
                           subject="model")  # fmt: skip
    hint = "name the .tflite file itself; its bytes 4 to 8 are TFL3"
    return SourceError(f"{path} is not a TFLite model", hint=hint, subject="model")


def _damaged(path: Path, why: str) -> SourceError:
    return SourceError(f"{path} is damaged ({why})", hint="copy it again, or convert it again", subject="model")


def kind_of(tensor: Any) -> str:
    """A tensor's type by optkit's name, or by the file's where optkit has none ("complex64", "resource")."""
    kinds = need("ai_edge_litert.schema_py_generated", "ai-edge-litert").TensorType
    found = next((n for n, value in vars(kinds).items() if value == tensor.type), str(tensor.type))
    return DTYPES.get(found, found.lower())


def dtype_of(tensor: Any, name: str) -> str:
    """The type of an input or output. Raises SourceError for one that cannot be fed or read (complex, resource)."""
    kind = kind_of(tensor)
    if kind not in DTYPES.values():
        hint = "give its parts, torch.view_as_real" if "complex" in kind else "keep what makes it inside of the model"
        raise SourceError(f"{name!r} is {kind} in the TFLite file, which optkit cannot feed or read", hint=hint,
                          subject="model")  # fmt: skip
    return kind


def text_of(name: Any) -> str:
    """A flatbuffer string, which is bytes."""
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name or "")


def signatures(model: Any) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Per signature its inputs and outputs: name to tensor, in the file's order.

    A file without signatures has one by the name "", of its first graph's own inputs and outputs.
    """
    found = {}
    for definition in model.signatureDefs or ():
        tensors = model.subgraphs[definition.subgraphIndex].tensors
        found[text_of(definition.signatureKey)] = (
            {text_of(t.name): tensors[t.tensorIndex] for t in definition.inputs or ()},
            {text_of(t.name): tensors[t.tensorIndex] for t in definition.outputs or ()},
        )
    if found:
        return found
    graph = model.subgraphs[0]
    inputs, outputs = (
        {text_of(graph.tensors[i].name): graph.tensors[i] for i in ports} for ports in (graph.inputs, graph.outputs)
    )
    return {"": (inputs, outputs)}


def recorded(model: Any) -> Contract | None:
    """The contract that `write` put into a file, or None."""
    for entry in model.metadata or ():
        if text_of(entry.name) == RECORD.decode():
            try:
                return Contract.from_json(json.loads(bytes(model.buffers[entry.buffer].data)))
            except (ValueError, KeyError, TypeError):
                return None  # somebody edited it: the file then speaks for itself
    return None


def contract(model: Any) -> Contract:
    """What a session on a file takes and gives. Unnamed dynamic axes are called `<tensor>_<axis>`."""
    found = recorded(model)
    if found is not None:
        return found
    every = signatures(model)
    inputs, outputs = every.get(DEFAULT) or next(iter(every.values()))
    return Contract(
        tuple(TensorSpec(name, dtype_of(t, name), file_shape(t, name)) for name, t in inputs.items()),
        tuple(TensorSpec(name, dtype_of(t, name), file_shape(t, name)) for name, t in outputs.items()),
    )


def file_shape(tensor: Any, name: str) -> tuple[int | str, ...]:
    """A tensor's shape; an axis that may be resized is called `<name>_<axis>`."""
    signed = tensor.shapeSignature
    sizes = signed if signed is not None and len(signed) else tensor.shape if tensor.shape is not None else ()
    return tuple(int(n) if n >= 0 else f"{name}_{axis}" for axis, n in enumerate(sizes))


def describe(path: Path, meta: Mapping[str, Any] | None = None) -> Signature:
    """What a session takes and gives: see `Contract`. The file is verified, and nothing of it is run."""
    found = contract(read(path))
    interpreter(path)
    return Signature(found.inputs, found.outputs)


# ------------------------------------------------------------------------------------------------ writing


def write(model: Any, path: Path, agreed: Contract) -> None:
    """Write a `ModelT` with its contract, so that readers other than LiteRT take it too.

    Buffers lie inside the flatbuffer at multiples of 16 bytes, and the old field of an operator's code is filled in as
    the schema asks: OpenVINO takes a 0 there for ADD. Raises StepError for a model past 2 GiB.
    """
    import numpy as np

    flatbuffers, schema = need("flatbuffers"), need("ai_edge_litert.schema_py_generated", "ai-edge-litert")
    for code in model.operatorCodes:
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    model.metadata = [m for m in model.metadata or () if text_of(m.name) != RECORD.decode()]
    text = json.dumps(agreed.to_json(), sort_keys=True, separators=(",", ":")).encode()
    model.buffers.append(schema.BufferT(data=np.frombuffer(text, np.uint8)))
    model.metadata.append(schema.MetadataT(name=RECORD, buffer=len(model.buffers) - 1))
    size = 0
    for buffer in model.buffers:
        if buffer.data is not None:
            held = buffer.data
            buffer.data = np.asarray(held, np.uint8) if isinstance(held, list) else np.frombuffer(held, np.uint8)
            size += buffer.data.nbytes + 32
        buffer.offset = buffer.size = 0
    if size > LIMIT:
        raise StepError(f"{size} bytes of weights do not fit a TFLite file, which ends at 2 GiB", subject="model",
                        hint="quantise in another format, or split the model")  # fmt: skip

    class Aligned(flatbuffers.Builder):  # type: ignore[misc, name-defined]
        def StartVector(self, width: int, count: int, alignment: int) -> Any:
            return super().StartVector(width, count, 16 if width == 1 else alignment)

    builder = Aligned(size + (1 << 16))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    with path.open("wb") as handle:
        handle.write(memoryview(builder.Bytes)[builder.Head() :])


def rename(model: Any, agreed: Contract, names: Mapping[str, str]) -> None:
    """Signature tensors under the recipe's names, in its order, and dynamic axes marked as such.

    names: what the converter called them, to the recipe's. Raises StepError for one that the file lacks.
    """
    for definition in model.signatureDefs:
        tensors = model.subgraphs[definition.subgraphIndex].tensors
        for side, specs in (("inputs", agreed.inputs), ("outputs", agreed.outputs)):
            entries = {names.get(text_of(e.name), text_of(e.name)): e for e in getattr(definition, side)}
            for spec in specs:
                if spec.name not in entries:
                    raise StepError(f"the converted model has no {side[:-1]} {spec.name!r}, only {', '.join(entries)}",
                                    subject=side, hint="take out an input that forward ignores")  # fmt: skip
                entry = entries[spec.name]
                entry.name = spec.name.encode()
                shape = agreed.file_shape(spec, dict.fromkeys(agreed.sizes, 1))
                if any(isinstance(d, str) for d in shape):
                    tensor = tensors[entry.tensorIndex]
                    tensor.shapeSignature = [
                        -1 if isinstance(d, str) else int(n) for d, n in zip(shape, tensor.shape, strict=True)
                    ]
            setattr(definition, side, [entries[spec.name] for spec in specs])


def is_quantised(tensor: Any) -> bool:
    """Whether a tensor's integers have a scale."""
    return tensor.quantization is not None and tensor.quantization.scale is not None and len(
        tensor.quantization.scale) > 0  # fmt: skip


def convertible(said: str, held: str, quantised: bool) -> bool:
    """Whether a session may turn what the recipe says into what the file holds."""
    if said == held or (said, held) in {("int64", "int32"), ("float64", "float32")}:
        return True
    return quantised and said == "float32" and held in ("int8", "int16", "uint8")
