"""onnx.compress_weights: weights of an ONNX graph in 4 or 8 bits, in groups; activations stay floating point."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from optkit.artifact import Artifact
from optkit.errors import DataError, StepError, did_you_mean
from optkit.formats.onnx import blocks as onnx_blocks
from optkit.formats.onnx import feeds as onnx_feeds
from optkit.formats.onnx import hessian as onnx_hessian
from optkit.formats.onnx import integer as onnx_integer
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx import nbits as onnx_nbits
from optkit.formats.onnx import value_types as onnx_types
from optkit.formats.onnx import weights
from optkit.formats.onnx.quantize_job import INSERTED
from optkit.plugin import Context, Options, Pass, need

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optkit.plugin import Tensors

_BATCH = 4  # samples in one feed: the inputs of all layers are held
_PRODUCTS = ("Gemm", "MatMul")
_KINDS = (*_PRODUCTS, "Gather")
# Share of a weight's norm that it may be off by. Nearest rounding is off by half a step, a thirtieth (4 bits) or 510th
# (8 bits) of the group's range, at each of up to 256 weights: at most 0.53 and 0.03. Another order of the integers is
# off by 1.4. What "gptq" makes up for in other columns counts too: twice as much.
_FAR = {4: 0.55, 8: 0.035}


class CompressWeightsOptions(Options):
    """Which weights are stored in how many bits."""

    bits: Literal[4, 8] = Field(4, description="bits of a weight")
    group_size: Literal[16, 32, 64, 128, 256] = Field(
        128, description="how many weights of a row share a scale; smaller is closer and takes more bytes"
    )
    symmetric: bool = Field(False, description="no zero point: fewer bytes, less close")
    algorithm: Literal["rtn", "hqq", "gptq"] = Field(
        "rtn", description="rtn: round to nearest; hqq: zero points fitted to the weights (4 bits, form onnxruntime); "
                           "gptq: rounding that keeps each product's outputs on the data, which it needs")  # fmt: skip
    form: Literal["onnxruntime", "standard"] = Field(
        "onnxruntime", description="onnxruntime: its own operators, MatMulNBits; standard: DequantizeLinear over "
                                   "groups, opset 21, which onnxruntime fuses into the same kernels and others read too"
    )  # fmt: skip
    compute: Literal["float32", "int8"] | None = Field(
        None, description="form onnxruntime: int8 rounds activations in groups too, faster and some 45 dB off; float32 "
                          "unless given. Form standard: onnxruntime decides")  # fmt: skip
    op_types: tuple[str, ...] = Field(
        _PRODUCTS, description="operators whose weights to compress: MatMul, Gemm, and Gather for tables"
    )
    exclude: tuple[str, ...] = Field((), description="names of nodes that stay float; * stands for anything")

    @model_validator(mode="after")
    def _consistent(self) -> CompressWeightsOptions:
        unknown = [name for name in self.op_types if name not in _KINDS]
        hint = did_you_mean(unknown[0], _KINDS) if unknown else ""
        hqq = self.algorithm == "hqq"
        wrong = [text for holds, text in (
            (bool(unknown), f"op_types: {', '.join(unknown)} cannot be compressed; {hint or ', '.join(_KINDS)}"),
            (not self.op_types, "op_types is empty"),
            (hqq and self.bits == 8, "hqq is for 4 bits: onnxruntime has no kernel for 8 with its zero points"),
            (hqq and self.symmetric, "hqq searches zero points, and symmetric has none"),
            (hqq and self.form == "standard", "hqq has fractional zero points, which DequantizeLinear cannot hold"),
            (self.form == "standard" and self.compute is not None, "compute goes with form: onnxruntime"),
            (self.algorithm != "rtn" and not set(self.op_types) & set(_PRODUCTS),
             f"{self.algorithm} is for products; tables are rounded to nearest"),
        ) if holds]  # fmt: skip
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def scheme(self) -> onnx_blocks.Scheme:
        """How weights are quantised."""
        return onnx_blocks.Scheme(self.bits, self.group_size, self.symmetric, self.algorithm)


def run(artifact: Artifact, out_dir: Path, options: CompressWeightsOptions, context: Context) -> dict[str, Any]:
    """Compress weights, one at a time. The data is streamed, and read once more for each GiB of Hessians.

    Raises DataError where "gptq" has no data, or another algorithm some; StepError where a name in `exclude` matches
    nothing, the opset is too old for the form, the model is compressed already or nothing in it can be.
    """
    need("onnx")
    _data_fits(options, context)
    model = onnx_integer.prepare(onnx_model.load(artifact.path, weights=False))
    if any(True for _ in onnx_nbits.held(model, artifact.path.parent)):
        raise StepError("the model's weights are compressed already", subject="from",
                        hint="compress the float model this one was made from")  # fmt: skip
    version = onnx_model.opset(model)
    if options.form == "standard" and version < 21:
        raise StepError(f"the model has opset {version}; groups in DequantizeLinear need 21", subject="with.form",
                        hint="export it at opset 21 or newer, or set form: onnxruntime")  # fmt: skip
    rewrite = onnx_integer.Rewrite(model, artifact.path.parent, onnx_integer.Scheme())
    targets, left, excluded = _targets(rewrite, options)
    if not targets and any(onnx_model.count_operators(model)[name] for name in INSERTED):
        raise StepError("the model is quantised already", subject="from",
                        hint="compress the float model this one was made from")  # fmt: skip
    if not targets:
        kinds = " or ".join(options.op_types)
        why = "".join(f"; {n} {text}" for text, n in left.items())
        halved = any(text.endswith("not float32") for text in left)
        raise StepError(f"nothing was compressed: the model has no {kinds} whose weight fits"
                        + (" outside of with.exclude" if excluded else "") + why, subject="with.op_types",
                        hint="compress the float32 model, then onnx.fp16" if halved else
                        f"the model has {onnx_integer.shown(model)}")  # fmt: skip
    folder = context.scratch / "compressed"
    folder.mkdir()
    samples, hessians = 0, dict[str, Path]()
    if options.algorithm == "gptq":
        samples, hessians = _learned(artifact, rewrite, targets, context, folder)
    writer = onnx_nbits.Writer(
        rewrite, options.scheme, options.form, options.compute == "int8", folder,
        lambda name: _loaded(hessians.get(name)),
    )  # fmt: skip
    done = writer.compress(targets, context.progress)
    onnx_model.save(model, out_dir, source=artifact.path.parent, payloads=rewrite.payloads)
    shutil.rmtree(folder)
    return {
        "compressed": dict(sorted(done.items())),
        "left_float": dict(left),
        "excluded": sorted(excluded),
        "weight_bytes": {"before": writer.bytes_before, "after": writer.bytes_after},
        **({"samples": samples} if hessians else {}),
    }


def _data_fits(options: CompressWeightsOptions, context: Context) -> None:
    if options.algorithm == "gptq" and context.data is None:
        raise DataError("gptq rounds by what the layers are given, and the step has no data", subject="data",
                        hint="give the step `data:`, or set algorithm: hqq")  # fmt: skip
    if options.algorithm != "gptq" and context.data is not None:
        raise DataError(f"the step was given data, and {options.algorithm} uses none", subject="data",
                        hint="leave data out, or set algorithm: gptq")  # fmt: skip


def _targets(
    rewrite: onnx_integer.Rewrite, options: CompressWeightsOptions
) -> tuple[list[Any], Counter[str], set[str]]:
    """The nodes to compress, why others of their type stay float, and the names of those that were excluded."""
    model = rewrite.model
    excluded, left = onnx_integer.matching(model, options.exclude), Counter[str]()
    types = onnx_types.value_types(model.graph, onnx_types.opsets(model))
    found = []
    for node in model.graph.node:
        if node.op_type not in options.op_types or node.domain not in ("", "ai.onnx") or node.name in excluded:
            continue
        if node.op_type == "Gather" and node.input[0] not in rewrite.initializers:
            continue  # picks from what the model computes
        if why := onnx_nbits.unfit(rewrite, node, types, options.form, options.scheme):
            left[f"{node.op_type} {why}"] += 1
        else:
            found.append(node)
    return found, left, excluded


def _learned(
    artifact: Artifact, rewrite: onnx_integer.Rewrite, targets: Sequence[Any], context: Context, folder: Path
) -> tuple[int, dict[str, Path]]:
    """How many samples there were, and the Hessian of each product's weight."""
    data, seen = context.data, 0
    assert data is not None
    layers = [one for node in targets if (one := onnx_hessian.layer(rewrite, node))]

    def feeds() -> Iterator[Tensors]:
        nonlocal seen
        seen = 0
        for feed, count in onnx_feeds.calibration_feeds(artifact, data, context, _BATCH):
            yield feed
            seen += count
            context.progress(f"learning from {seen} of {len(data)} samples", min(seen / max(len(data), 1), 1.0))

    found = onnx_hessian.hessians(rewrite.model, artifact.path.parent, layers, feeds, context.threads, folder)
    if not seen:
        raise DataError("the data has no samples", subject="data", hint="name a dataset that is not empty")
    return seen, found


def _loaded(path: Path | None) -> NDArray[Any] | None:
    """A product's Hessian, `(inputs, inputs)`."""
    import numpy as np

    return np.load(path)[0] if path else None


def confirm(parent: Artifact, artifact: Artifact, options: CompressWeightsOptions, context: Context) -> list[str]:
    """Reads every compressed weight back and compares it with the parent's; and the rest with what was asked for."""
    before = onnx_integer.prepare(onnx_model.load(parent.path, weights=False))
    model = onnx_model.load(artifact.path, weights=False)
    rewrite = onnx_integer.Rewrite(before, parent.path.parent, onnx_integer.Scheme())
    targets, _, excluded = _targets(rewrite, options)
    held = dict(onnx_nbits.held(model, artifact.path.parent))
    complaints = [f"{name} was excluded and is compressed" for name in sorted(excluded & held.keys())]
    for node in targets:
        label = f"the weight of {node.op_type} {node.name}"
        if (found := held.get(node.name)) is None:
            complaints.append(f"{label} is not compressed")
            continue
        complaints += [f"{label} {text}" for text in _unlike(found, options)]
        complaints += _far(rewrite, node, found, options, label)
    return complaints


def _unlike(found: onnx_nbits.Held, options: CompressWeightsOptions) -> Iterator[str]:
    """What differs from the options."""
    operators: Mapping[str, Sequence[str]] = {
        "onnxruntime": (onnx_nbits.PRODUCT, onnx_nbits.LOOKUP),
        "standard": ("DequantizeLinear",),
    }
    if found.operator not in operators[options.form]:
        yield f"is read by {found.operator}, and the form is {options.form}"
    if found.bits != options.bits:
        yield f"has {found.bits} bits, not {options.bits}"
    if found.group > options.group_size:
        yield f"has groups of {found.group}, not {options.group_size}"
    if found.symmetric != options.symmetric:
        yield f"has {'no' if found.symmetric else 'a'} zero point"
    if found.operator == onnx_nbits.PRODUCT and found.integer_compute != (options.compute == "int8"):
        yield f"is computed with in {'int8' if found.integer_compute else 'float32'}"


def _far(
    rewrite: onnx_integer.Rewrite, node: Any, found: onnx_nbits.Held, options: CompressWeightsOptions, label: str
) -> Iterator[str]:
    """Whether a weight, as the file holds it, is what the parent has."""
    import numpy as np

    name = node.input[onnx_integer.weight_input(node) or 0]
    source = np.asarray(weights.read(rewrite.initializers[name], rewrite.folder), np.float32)
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not onnx_integer.attribute(node, "transB", 0)):
        source = source.T
    if node.op_type == "Gemm":
        source = source * np.float32(onnx_integer.attribute(node, "alpha", 1.0))
    off = float(np.linalg.norm(found.values() - source)) / max(float(np.linalg.norm(source)), 1e-30)
    limit = _FAR[options.bits] * (2 if options.algorithm == "gptq" else 1)
    if not off <= limit:
        yield f"{label} is {off:.0%} off the source's; {options.bits} bits explain at most {limit:.0%}"


PASS = Pass(
    name="onnx.compress_weights",
    version=1,
    source="onnx",
    target="onnx",
    summary="store weights in 4 or 8 bits, in groups, and compute in floating point",
    run=run,
    confirm=confirm,
    options=CompressWeightsOptions,
    fidelity="lossy",
    tools=("onnx", "onnxruntime", "numpy"),
    modules=("optkit.formats.warm.onnxruntime",),
    needs_data=lambda options: bool(options.algorithm == "gptq"),
)
