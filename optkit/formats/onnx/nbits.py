"""ONNX graphs whose products and lookups read weights of 4 or 8 bits in groups: how they are written, and read back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optkit.formats.onnx import blocks as onnx_blocks
from optkit.formats.onnx import integer as onnx_integer
from optkit.formats.onnx import weights as onnx_weights
from optkit.formats.onnx.blocks import Blocks, Scheme

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

DOMAIN = "com.microsoft"
PRODUCT, LOOKUP = "MatMulNBits", "GatherBlockQuantized"

Form = Literal["onnxruntime", "standard"]


def unfit(rewrite: onnx_integer.Rewrite, node: Any, types: Mapping[str, int], form: Form, scheme: Scheme) -> str:
    """Why a node's weight cannot be compressed; "" where it can."""
    if why := onnx_integer.unfit(rewrite, node, types):
        return why
    tensor = rewrite.initializers[node.input[onnx_integer.weight_input(node) or 0]]
    if len(tensor.dims) != 2:
        return "with a weight that is no matrix"
    if node.op_type == "Gather" and onnx_integer.attribute(node, "axis", 0) != 0:
        return "that look up along another axis than the first"
    inputs = tensor.dims[1] if node.op_type == "Gather" or _transposed(node) else tensor.dims[0]
    if (form == "standard" or node.op_type == "Gather") and not _divisor(scheme.group_size, inputs):
        return f"whose rows no group of {onnx_blocks.LEAST_GROUP} divides"
    return ""


def _divisor(group: int, inputs: int) -> int:
    """The largest group, no larger than asked for, that divides a row; 0 where there is none."""
    found = math.gcd(group, inputs)
    return found if found >= onnx_blocks.LEAST_GROUP else 0


def _transposed(node: Any) -> bool:
    return node.op_type == "Gemm" and bool(onnx_integer.attribute(node, "transB", 0))


@dataclass
class Writer:
    """Puts compressed weights into a graph. Their bytes wait in `folder`, so that one weight at a time is in memory.

    hessian(tensor) gives what "gptq" needs for the weight of a product. compute: in float32, or in int8 where the
    kernel rounds activations too (form "onnxruntime" alone).
    """

    rewrite: onnx_integer.Rewrite
    scheme: Scheme
    form: Form
    integer_compute: bool
    folder: Path
    hessian: Callable[[str], Array | None] = lambda name: None

    def __post_init__(self) -> None:
        self._made: dict[tuple[str, bool, bool], tuple[list[str], int]] = {}
        self.bytes_before = self.bytes_after = 0

    def compress(self, targets: Sequence[Any], progress: Callable[[str, float], None]) -> Counter[str]:
        """Rewrite the targets in place; how many of each operator."""
        wanted, done = {node.name for node in targets}, Counter[str]()
        graph, nodes = self.rewrite.model.graph, []
        for node in list(graph.node):
            if node.name not in wanted:
                nodes.append(node)
                continue
            progress(f"compressing {node.name}", done.total() / len(targets))
            nodes += self._lookup(node) if node.op_type == "Gather" else self._product(node)
            done[node.op_type] += 1
        del graph.node[:]
        graph.node.extend(nodes)
        self.rewrite.prune()
        if self.form == "onnxruntime" and not any(o.domain == DOMAIN for o in self.rewrite.model.opset_import):
            self.rewrite.model.opset_import.add(domain=DOMAIN, version=1)
        return done

    def _product(self, node: Any) -> list[Any]:
        import onnx

        make, name, output = onnx.helper.make_node, node.name, node.output[0]
        alpha = onnx_integer.attribute(node, "alpha", 1.0) if node.op_type == "Gemm" else 1.0
        parts, group = self._weight(node.input[1], _transposed(node), False, alpha)
        bias = node.input[2] if len(node.input) > 2 else ""
        product = self.rewrite.fresh(f"{output}_product") if bias else output
        tail = [make("Add", [product, bias], [output], name=f"{name}_bias")] if bias else []
        if self.form == "standard":
            floats = self.rewrite.fresh(f"{node.input[1]}_dequantized")
            widen = make("DequantizeLinear", parts, [floats], name=floats, axis=0, block_size=group)
            return [widen, make("MatMul", [node.input[0], floats], [product], name=name), *tail]
        dims = self.rewrite.initializers[node.input[1]].dims
        inputs, outputs = (dims[1], dims[0]) if _transposed(node) else (dims[0], dims[1])
        level = 4 if self.integer_compute else 1  # onnxruntime's numbers for int8 and float32
        return [make(PRODUCT, [node.input[0], *parts], [product], name=name, domain=DOMAIN, K=inputs, N=outputs,
                     bits=self.scheme.bits, block_size=group, accuracy_level=level), *tail]  # fmt: skip

    def _lookup(self, node: Any) -> list[Any]:
        import onnx

        make = onnx.helper.make_node
        parts, group = self._weight(node.input[0], True, True, 1.0)
        if self.form == "standard":
            floats = self.rewrite.fresh(f"{node.input[0]}_dequantized")
            widen = make("DequantizeLinear", parts, [floats], name=floats, axis=1, block_size=group)
            return [widen, make("Gather", [floats, node.input[1]], list(node.output), name=node.name, axis=0)]
        return [make(LOOKUP, [parts[0], node.input[1], *parts[1:]], list(node.output), name=node.name, domain=DOMAIN,
                     bits=self.scheme.bits, block_size=group, quantize_axis=1, gather_axis=0)]  # fmt: skip

    def _weight(self, name: str, rows_first: bool, table: bool, alpha: float) -> tuple[list[str], int]:
        """The names of a weight's integers, scale and, unless symmetric, zero point; and its group."""
        import numpy as np

        key = (name, rows_first, table)
        if alpha == 1.0 and key in self._made:
            return self._made[key]
        tensor = self.rewrite.initializers[name]
        values = onnx_weights.read(tensor, self.rewrite.folder)
        if not np.isfinite(values).all():
            raise onnx_integer.not_finite(name)
        rows = np.ascontiguousarray(values if rows_first else values.T, np.float32) * np.float32(alpha)
        scheme = self.scheme
        if self.form == "standard" or table:
            group = _divisor(scheme.group_size, rows.shape[1])
            algorithm = "rtn" if table else scheme.algorithm
            scheme = Scheme(scheme.bits, group, scheme.symmetric, algorithm)
        hessian = None if table else self.hessian(name)
        blocks = onnx_blocks.quantised(rows, scheme, hessian)
        store = self._standard if self.form == "standard" else self._packed
        made = store(name, blocks, table)
        self.bytes_before += values.nbytes
        if alpha == 1.0:
            self._made[key] = (made, blocks.group)
        return made, blocks.group

    def _packed(self, name: str, blocks: Blocks, table: bool) -> list[str]:
        """As onnxruntime's operators read it: rows of outputs, integers packed along them."""
        import numpy as np

        bits, outputs = self.scheme.bits, len(blocks.scale)
        if table:
            integers = onnx_blocks.packed(blocks.integers[:, : blocks.inputs], bits)
        else:
            integers = onnx_blocks.packed(blocks.integers, bits).reshape(outputs, blocks.scale.shape[1], -1)
        made = [self._add(f"{name}_{bits}bit", integers), self._add(f"{name}_scale", blocks.scale)]
        if self.scheme.symmetric:
            return made
        zero = blocks.zero if blocks.fractional else onnx_blocks.packed(blocks.zero.astype(np.uint8), bits)
        return [*made, self._add(f"{name}_zero_point", zero)]

    def _standard(self, name: str, blocks: Blocks, table: bool) -> list[str]:
        """As DequantizeLinear reads it, in the layout of the operator; symmetric weights signed, without zero point."""
        import ml_dtypes
        import numpy as np

        bits, signed = self.scheme.bits, self.scheme.symmetric
        kinds = {(4, False): ml_dtypes.uint4, (4, True): ml_dtypes.int4, (8, False): np.uint8, (8, True): np.int8}
        kind = np.dtype(kinds[bits, signed])
        shift = self.scheme.middle if signed else 0
        arranged = [
            np.ascontiguousarray(a if table else a.T)
            for a in (blocks.integers[:, : blocks.inputs], blocks.scale, blocks.zero.astype(np.uint8))
        ]
        whole = (arranged[0].astype(np.int16) - shift).astype(np.int8).view(np.uint8) & self.scheme.most
        made = [self._add(f"{name}_{bits}bit", whole, kind), self._add(f"{name}_scale", arranged[1])]
        return made if signed else [*made, self._add(f"{name}_zero_point", arranged[2], kind)]

    def _add(self, name: str, values: Array, kind: Any = None) -> str:
        """A new initializer whose bytes wait in a file. kind: how to read integers that are packed here."""
        import numpy as np

        fresh = self.rewrite.fresh(name)
        tensor = onnx_weights.placeholder(fresh, values.shape, kind or values.dtype)
        raw = onnx_blocks.packed(values.reshape(1, -1), 4) if kind is not None and self.scheme.bits == 4 else values
        path = self.folder / f"{len(self.rewrite.payloads)}.npy"
        np.save(path, raw)
        self.rewrite.model.graph.initializer.append(tensor)
        self.rewrite.payloads[fresh] = lambda: np.load(path, mmap_mode="r")
        self.bytes_after += raw.nbytes
        return fresh


@dataclass(frozen=True)
class Held:
    """A compressed weight as a file holds it. values: float32 `(outputs, inputs)`; compute: of its product."""

    operator: str
    bits: int
    group: int
    symmetric: bool
    integer_compute: bool
    values: Callable[[], Array]


def held(model: Any, folder: Path) -> Iterator[tuple[str, Held]]:
    """Every operator of a graph that reads a compressed weight, by name, and what it reads."""
    tensors = {t.name: t for t in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.domain == DOMAIN and node.op_type in (PRODUCT, LOOKUP):
            parts = [*node.input[:1], *node.input[2:4]] if node.op_type == LOOKUP else list(node.input[1:4])
            get = {a.name: a.i for a in node.attribute}
            found = [tensors[name] for name in parts if name in tensors]
            yield node.name, Held(
                node.op_type, get["bits"], get["block_size"], len(found) < 3, get.get("accuracy_level") == 4,
                lambda found=found, get=get: _packed_values(found, folder, get),  # type: ignore[misc]
            )  # fmt: skip
        elif node.op_type in ("MatMul", "Gather"):
            at = 1 if node.op_type == "MatMul" else 0
            maker = makers.get(node.input[at])
            group = onnx_integer.attribute(maker, "block_size", 0) if maker is not None else 0
            if maker is None or maker.op_type != "DequantizeLinear" or not group:
                continue
            found = [tensors[name] for name in maker.input]
            axis = 1 - at
            yield node.name, Held(
                maker.op_type, 8 if onnx_weights.size_of(found[0]) == math.prod(found[0].dims) else 4, group,
                len(found) < 3, False, lambda f=found, a=axis, g=group: _standard_values(f, folder, a, g),  # type: ignore[misc]
            )  # fmt: skip


def _packed_values(tensors: Sequence[Any], folder: Path, attributes: Mapping[str, int]) -> Array:
    import numpy as np

    raw, scale = (onnx_weights.read(t, folder) for t in tensors[:2])
    bits, group = attributes["bits"], attributes["block_size"]
    outputs, groups = scale.shape
    inputs = attributes.get("K", raw.shape[-1] * 8 // bits)
    integers = onnx_blocks.unpacked(raw.reshape(outputs, -1), bits, inputs).astype(np.float32)
    zero: Array = np.full(scale.shape, 2 ** (bits - 1), np.float32)
    if len(tensors) > 2:
        stored = onnx_weights.read(tensors[2], folder)
        zero = stored if stored.dtype.kind == "f" else onnx_blocks.unpacked(stored.reshape(outputs, -1), bits, groups)
    spread = [np.repeat(a.astype(np.float32), group, axis=1)[:, :inputs] for a in (zero, scale)]
    values: Array = (integers - spread[0]) * spread[1]
    return values


def _standard_values(tensors: Sequence[Any], folder: Path, axis: int, group: int) -> Array:
    import numpy as np

    parts = [np.asarray(onnx_weights.read(t, folder)).astype(np.float32) for t in tensors]
    scale, *zeros = (np.repeat(a, group, axis=axis) for a in parts[1:])
    values: Array = (parts[0] - (zeros[0] if zeros else 0)) * scale
    return values.T if axis == 0 else values
