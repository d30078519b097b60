"""onnx.optimize_transformer: fuses the subgraphs of a transformer into onnxruntime's own operators."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from optkit.artifact import Artifact
from optkit.errors import StepError
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx import session as onnx_session
from optkit.plugin import Context, Options, Pass, need

ModelType = Literal["bart", "bert", "bert_keras", "bert_tf", "clip", "conformer", "gpt2", "gpt2_tf", "gpt_neox",
                    "mmdit", "phi", "qwen3", "sam2", "swin", "t5", "tnlr", "unet", "vae", "vit"]  # fmt: skip
_LARGE = 256 << 20  # bytes: from here on the weights stay on disk
# Standard operators that fusions make too, besides those of onnxruntime's own domain.
_FUSED = frozenset({"Attention", "Gelu", "LayerNormalization", "RMSNormalization", "RotaryEmbedding",
                    "SimplifiedLayerNormalization"})  # fmt: skip


class TransformerOptions(Options):
    """Which fusions are tried."""

    model_type: ModelType = Field("bert", description="the family whose patterns are looked for; most encoders: bert")
    num_heads: int = Field(0, ge=0, description="attention heads; 0 finds out from the graph")
    hidden_size: int = Field(0, ge=0, description="width of the hidden states; 0 finds out from the graph")
    opt_level: Literal[0, 1, 2] = Field(1, description="onnxruntime's own optimiser before the fusions: 0 none, 1 what "
                                                       "holds on every device, 2 what suits this CPU")  # fmt: skip
    only_onnxruntime: bool = Field(False, description="onnxruntime's own optimiser alone; needs opt_level 2")

    @model_validator(mode="after")
    def _consistent(self) -> TransformerOptions:
        if self.only_onnxruntime and self.opt_level < 2:
            raise ValueError("only_onnxruntime fuses nothing below opt_level 2")
        if self.num_heads and self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}")
        return self


def run(artifact: Artifact, out_dir: Path, options: TransformerOptions, context: Context) -> dict[str, Any]:
    """Fuse attention, normalisation and activations. The result runs on onnxruntime only.

    Raises StepError where nothing is fused.
    """
    need("onnx")
    need("onnxruntime")
    model = onnx_model.load(artifact.path, weights=False)
    before, large = onnx_model.count_operators(model), onnx_model.size_bytes(model) >= _LARGE
    path = artifact.path
    if options.opt_level:
        context.progress("optimising with onnxruntime", None)
        outside = large or len(onnx_model.files(artifact.path)) > 1
        path = _by_session(artifact.path, options, context, outside)
    model = onnx_model.load(path, weights=not large)
    messages: list[str] = []
    if not options.only_onnxruntime:
        context.progress(f"fusing as {options.model_type}", None)
        # the fusions copy the graph; without the weights that is cheap, and those they need they find from here
        with contextlib.chdir(path.parent) if large else contextlib.nullcontext():
            model, messages = _by_fusion(model, options)
    after = onnx_model.count_operators(model)
    fused = _fused(before, after)
    if not fused:
        raise StepError(
            f"no fusion applied: nothing in the graph looks like {options.model_type} to onnxruntime",
            hint="run onnx.simplify before it, try another with.model_type, or leave this step out",
            details="\n".join(messages),
        )
    used = {node.domain for node in onnx_model.all_nodes(model.graph)} | {""}
    for entry in [o for o in model.opset_import if o.domain not in used and o.domain != "ai.onnx"]:
        model.opset_import.remove(entry)
    onnx_model.save(model, out_dir, source=path.parent)
    return {
        "fused": dict(sorted(fused.items())),
        "nodes": {"before": before.total(), "after": after.total()},
        "portable": False,
        "messages": messages,
    }


def confirm(parent: Artifact, artifact: Artifact, options: TransformerOptions, context: Context) -> list[str]:
    """Whether fused operators are in the file, with the number of heads that was asked for."""
    before, model = (onnx_model.load(a.path, weights=False) for a in (parent, artifact))
    complaints = []
    if not _fused(onnx_model.count_operators(before), onnx_model.count_operators(model)):
        complaints.append("no fused operator is in the graph")
    for node in onnx_model.all_nodes(model.graph):
        heads = [a.i for a in node.attribute if a.name == "num_heads"]
        if options.num_heads and heads and heads[0] != options.num_heads:
            complaints.append(f"{node.op_type} {node.name} has {heads[0]} heads, not {options.num_heads}")
    return complaints


def _fused(before: Counter[str], after: Counter[str]) -> dict[str, int]:
    """How many fused operators there are more than before, by type."""
    return {
        name: count - before[name]
        for name, count in after.items()
        if count > before[name] and (name.startswith("com.microsoft.") or name in _FUSED)
    }


def _by_session(path: Path, options: TransformerOptions, context: Context, outside: bool) -> Path:
    """The file that onnxruntime writes when it optimises a model."""
    import onnxruntime as ort

    target = context.scratch / "optimised.onnx"
    settings = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    settings.graph_optimization_level = (
        levels.ORT_ENABLE_BASIC if options.opt_level == 1 else levels.ORT_ENABLE_EXTENDED
    )
    settings.intra_op_num_threads = context.threads
    settings.log_severity_level = 4
    settings.optimized_model_filepath = str(target)
    if outside:  # without a name of its own, the file would refer to the source's external data
        prefix = "session.optimized_model_external_initializers_"
        settings.add_session_config_entry(f"{prefix}file_name", f"{target.name}.data")
        settings.add_session_config_entry(f"{prefix}min_size_in_bytes", "1024")
    # as onnxruntime.transformers does: these leave patterns behind that its fusions don't know
    disabled = ["ConstantSharing"]
    if options.opt_level == 2 and not options.only_onnxruntime:
        disabled += ["MatMulScaleFusion", "MatMulAddFusion", "MatmulTransposeFusion", "GemmActivationFusion",
                     "BiasSoftmaxFusion"]  # fmt: skip
    with onnx_session.ort_errors(path.name):
        ort.InferenceSession(str(path), settings, providers=[onnx_session.CPU], disabled_optimizers=disabled)
    return target


def _by_fusion(model: Any, options: TransformerOptions) -> tuple[Any, list[str]]:
    with _captured() as messages:
        from onnxruntime.transformers import optimizer

        try:
            fused = optimizer.optimize_by_fusion(model, options.model_type, options.num_heads, options.hidden_size)
        except Exception as error:  # its pattern matching raises whatever an unforeseen graph leads to
            raise StepError(
                f"onnxruntime's fusions failed: {type(error).__name__}: {error}",
                hint="try another with.model_type, run onnx.simplify before it, or leave this step out",
                details="\n".join(messages),
            ) from error
    return fused.model, messages


@contextlib.contextmanager
def _captured() -> Iterator[list[str]]:
    """Collect what onnxruntime.transformers logs and prints, and undo its additions to sys.path."""
    messages: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    printed = io.StringIO()
    search = list(sys.path)
    folder = str(Path(need("onnxruntime.transformers.optimizer").__file__ or "").parent)
    # its modules import each other by bare name from that folder, and log under those names
    names = [name for name, module in list(sys.modules.items())
             if str(getattr(module, "__file__", None) or "").startswith(folder)]  # fmt: skip
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.propagate, logger.level) for logger in loggers]
    for logger in loggers:
        logger.propagate = False
        logger.addHandler(handler)
    try:
        with contextlib.redirect_stdout(printed):
            yield messages
    finally:
        for logger, (propagate, level) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate, logger.level = propagate, level
        sys.path[:] = search
        messages += [line for line in printed.getvalue().splitlines() if line.strip()]
        messages[:] = dict.fromkeys(messages)


PASS = Pass(
    name="onnx.optimize_transformer",
    version=1,
    source="onnx",
    target="onnx",
    summary="fuse attention, normalisation and activations into onnxruntime's operators",
    run=run,
    confirm=confirm,
    options=TransformerOptions,
    fidelity="rounding",
    tools=("onnxruntime", "onnx"),
    modules=("optkit.formats.warm.onnxruntime",),
)
