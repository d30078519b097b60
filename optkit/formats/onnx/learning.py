"""What data tells a quantisation: ranges of tensors, how to round weights, what to add to biases."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.formats.onnx import bias as onnx_bias
from optkit.formats.onnx import hessian as onnx_hessian
from optkit.formats.onnx import integer as onnx_integer
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx import qdq as onnx_qdq
from optkit.formats.onnx import rounding as onnx_rounding
from optkit.formats.onnx import shield as onnx_shield
from optkit.formats.onnx import statistics as onnx_statistics
from optkit.formats.onnx.quantize_job import Job, job_of
from optkit.formats.onnx.quantize_options import BETWEEN, MEASURED, STATIC, QuantizeOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optkit.artifact import Artifact
    from optkit.formats.onnx.ranges import Ranges
    from optkit.plugin import Context

    Array = NDArray[Any]

FOLDER = "learned"  # in the scratch folder
_HELD = 4  # samples in one feed where the inputs of all layers are held
_BATCH = 16  # and where nothing leaves the graph


@dataclass
class Learned:
    """What was found. biases: what to add, by name; means: of a layer's input channels, where that decides it."""

    samples: int = 0
    ranges: Ranges = field(default_factory=dict)
    rounding: Mapping[str, onnx_integer.Rounds] = field(default_factory=dict)
    biases: Mapping[str, Array] = field(default_factory=dict)
    means: Mapping[str, Array] = field(default_factory=dict)


def learn(artifact: Artifact, job: Job, options: QuantizeOptions, context: Context) -> Learned:
    """All of it. Ranges and means are from one pass over the data, whose statistics serve other steps too.

    "gptq" takes a pass for each GiB of Hessians, "full" bias correction one more for each layer in depth.
    """
    learned = Learned()
    if options.rounding == "gptq":
        learned.samples, learned.rounding = _rounding(artifact, job, context)
    if job.static is None or not (wanted := job.static.activations()):
        return learned
    channels = _inputs(job) if options.correct_bias == "fast" else {}
    request = onnx_statistics.Request({**_common(job, options), **wanted}, options.rule.binned, channels)
    found = onnx_statistics.gather(artifact, job.rewrite.model, request, context, options.form())
    learned.samples, learned.means = found.samples, found.means
    learned.ranges = {name: options.rule.range(found.spread[name]) for name in wanted}
    if options.correct_bias == "full":
        learned.biases = _measured(artifact, job, options, context, learned)
    return learned


def insert(job: Job, learned: Learned) -> tuple[list[str], int]:
    """Quantise the graph statically; what onnxruntime's quantiser had to say, and how many biases were corrected."""
    assert job.static is not None
    job.rewrite.rounding = learned.rounding
    layers = {one.node: one for one in onnx_bias.layers(job.rewrite, job.targets)} if learned.means else {}
    corrected = len(learned.biases)
    for bias, values in learned.biases.items():
        onnx_bias.add(job.rewrite, bias, values)

    def correct(node: Any, weight: onnx_integer.Weight) -> None:
        nonlocal corrected
        one, mean = layers.get(node.name), learned.means.get(node.input[0])
        off = onnx_bias.shift(job.rewrite, node, weight, mean) if one is not None and mean is not None else None
        if one is not None and off is not None:
            onnx_bias.add(job.rewrite, one.bias, -off / one.factor)
            corrected += 1

    job.static.each_weight = correct if layers else lambda node, weight: None
    wanted = job.static.activations()
    said = job.static.insert({name: learned.ranges[name] for name in wanted}, job.op_types)
    job.shielded = 0 if job.static.tensorrt else onnx_shield.shield(job.rewrite)
    return said, corrected


def _common(job: Job, options: QuantizeOptions) -> dict[str, int]:
    """The tensors that steps for another runtime ask for too, so that one pass serves all of them."""
    if options.op_types:
        return {}
    graph = job.rewrite.model.graph
    between = BETWEEN if job.convolutional else ()
    nodes = [node for node in graph.node
             if node.op_type in (*STATIC, *between) and node.domain in ("", "ai.onnx")
             and node.name not in job.excluded
             and all(name in job.types for name in (*node.input, *node.output) if name)]  # fmt: skip
    return onnx_qdq.Static(job.rewrite, nodes, job.types, "uint8", False, False).activations()


def _inputs(job: Job) -> dict[str, tuple[int, int]]:
    """The tensors that go into layers whose bias can be corrected, with their channels' axis."""
    nodes = {node.name: node for node in job.rewrite.model.graph.node}
    layers = onnx_bias.layers(job.rewrite, job.targets)
    return {nodes[one.node].input[0]: one.axis for one in layers if not onnx_integer.attribute(
        nodes[one.node], "transA", 0)}  # fmt: skip


def _rounding(artifact: Artifact, job: Job, context: Context) -> tuple[int, dict[str, onnx_integer.Rounds]]:
    layers = [one for node in job.targets if (one := onnx_hessian.layer(job.rewrite, node))]
    folder = context.scratch / FOLDER
    folder.mkdir(exist_ok=True)
    seen = 0

    def feeds() -> Iterator[Mapping[str, Array]]:
        nonlocal seen
        seen = 0
        for feed, count in onnx_statistics.feeds(artifact, context, _HELD, "learning from"):
            seen += count
            yield feed

    model, source = job.rewrite.model, artifact.path.parent
    made = onnx_hessian.hessians(model, source, layers, feeds, context.threads, folder)
    return seen, onnx_rounding.rounders(layers, made)


def _measured(
    artifact: Artifact, job: Job, options: QuantizeOptions, context: Context, learned: Learned
) -> dict[str, Array]:
    """What to add to each bias, as measured on the quantised model layer after layer."""
    assert context.data is not None
    layers = onnx_bias.layers(job.rewrite, job.targets)
    every = max(1, len(context.data) // MEASURED)

    def mean_outputs(model: Any, folder: Path, part: Sequence[onnx_bias.Layer], doing: str) -> dict[str, Array]:
        fed = onnx_statistics.feeds(artifact, context, min(_BATCH, max(1, _BATCH // every)), doing)
        spread = (pair for number, pair in enumerate(fed) if number % every == 0)
        return onnx_bias.means(model, folder, part, spread, context.threads)

    def quantised(added: Mapping[str, Array], part: Sequence[onnx_bias.Layer]) -> dict[str, Array]:
        trial = context.scratch / "trial"
        shutil.rmtree(trial, ignore_errors=True)
        trial.mkdir()
        now = job_of(artifact, options)
        insert(now, Learned(0, learned.ranges, learned.rounding, added))
        path = onnx_model.save(now.rewrite.model, trial, source=artifact.path.parent, payloads=now.rewrite.payloads)
        model = onnx_model.load(path, weights=False)
        return mean_outputs(model, trial, part, f"correcting {part[0].node},")

    try:
        before = mean_outputs(job.rewrite.model, artifact.path.parent, layers, "measuring on")
        return onnx_bias.fitted(layers, before, quantised)
    finally:
        shutil.rmtree(context.scratch / "trial", ignore_errors=True)
