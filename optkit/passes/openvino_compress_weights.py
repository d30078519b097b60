"""openvino.compress_weights: weights of an IR in 8 or 4 bits by NNCF; activations stay floating point."""

from __future__ import annotations

from math import gcd
from pathlib import Path
from re import findall
from typing import Any, Literal

from pydantic import Field

from optkit.artifact import Artifact
from optkit.errors import StepError
from optkit.formats.openvino import ir as openvino_ir
from optkit.formats.openvino import model as openvino_model
from optkit.formats.openvino.nncf import Ignored, nncf_session
from optkit.plugin import Context, Options, Pass

CAP = 128  # NNCF's own default for weight compression
EIGHT = frozenset({"int8", "uint8"})
FOUR = frozenset({"int4", "uint4"})
ON_DATA = ("awq", "gptq", "scale_estimation", "lora_correction")


class OpenVinoCompressWeights(Options):
    mode: Literal["int8_asym", "int8_sym", "int4_sym", "int4_asym"] = Field(
        "int8_asym", description="bits per weight, and whether a zero point goes with the scale"
    )
    group_size: int | None = Field(
        None, description="int4: how many weights of a channel share a scale; -1 is the whole channel; default 128"
    )
    ratio: float | None = Field(
        None, ge=0, le=1, description="int4: share of the weights in 4 bits, the rest in 8; default 1"
    )
    all_layers: bool | None = Field(
        None, description="int4: embeddings and the last layer in 4 bits too; default: those in 8"
    )
    awq: bool = Field(False, description="int4: activation-aware weight scaling; needs data")
    gptq: bool = Field(False, description="int4: correct rounding layer by layer (GPTQ); needs data")
    scale_estimation: bool = Field(False, description="int4: scales that least change layers' outputs; needs data")
    lora_correction: bool = Field(False, description="int4: add low-rank adapters that undo error; needs data")
    subset_size: int | None = Field(
        None, ge=1, description=f"how many samples to fit on; default all of the dataset, at most {CAP}"
    )
    ignored: Ignored = Field(default_factory=Ignored, description="operators whose weights stay in floating point")

    def model_post_init(self, context: Any, /) -> None:
        """Raises ValueError for options that the mode, or each other, excludes."""
        given = [
            name for name in ("group_size", "ratio", "all_layers", "subset_size") if getattr(self, name) is not None
        ]
        given += [name for name in ON_DATA if getattr(self, name)]
        if self.mode.startswith("int8") and given:
            raise ValueError(f"{', '.join(given)}: only for int4_sym and int4_asym, the mode is {self.mode}")
        if self.gptq and self.lora_correction:
            raise ValueError("gptq and lora_correction exclude each other")
        if self.group_size is not None and self.group_size != -1 and self.group_size < 2:
            raise ValueError("group_size is -1 or at least 2")
        if self.subset_size is not None and not self.uses_data:
            raise ValueError("subset_size is given, but these options use no data")

    @property
    def fits(self) -> bool:
        return any(getattr(self, name) for name in ON_DATA)

    @property
    def uses_data(self) -> bool:
        return self.fits or (self.mode.startswith("int4") and self.ratio is not None and self.ratio < 1)


def run(artifact: Artifact, out_dir: Path, options: OpenVinoCompressWeights, context: Context) -> dict[str, Any]:
    """Data, where the step has it, also decides which layers stay in 8 bits for a `ratio` under 1.

    Raises StepError for a group size that does not divide a layer's channels, for an ignored entry that matches
    nothing, for data that these options do not use, and where no layer was compressed.
    """
    if context.data is not None and not options.uses_data:
        raise StepError(
            "the step was given data, and with these options it uses none",
            subject="data",
            hint=f"leave data out, or set one of {', '.join(ON_DATA)}",
        )
    before = _made(artifact.path)
    model = openvino_model.read(artifact.path)
    with nncf_session(context, stages=4 if options.fits else 1) as session:
        nncf = session.nncf
        ignored = options.ignored.scope(nncf, model)
        arguments: dict[str, Any] = {"mode": nncf.CompressWeightsMode(options.mode), "ignored_scope": ignored}
        if options.mode.startswith("int4"):
            if options.fits or context.data is not None:
                arguments["dataset"], arguments["subset_size"] = session.feeds(model, options.subset_size, CAP)
            arguments |= {name: getattr(options, name) for name in ("group_size", "ratio", "all_layers")}
            arguments |= {name: getattr(options, name) or None for name in ON_DATA}
        context.progress("compress", 0.0)
        try:
            compressed = nncf.compress_weights(model, **arguments)
        except nncf.InvalidGroupSizeError as error:
            raise _group_size(options, str(error)) from error
    if any("applying AWQ algorithm, it will be skipped" in text for _, text in session.logged):
        raise StepError(
            "AWQ found nothing to scale: it takes a linear layer after an activation or a gate, as in a gated MLP",
            subject="with.awq",
            hint="leave awq out; scale_estimation and gptq work on any linear layer",
        )
    openvino_model.save(
        compressed,
        out_dir,
        context.inputs,
        context.dims,
        outputs=artifact.signature.outputs if artifact.signature else (),
    )
    made = _made(out_dir / openvino_model.MAIN)
    if before and sum(made.values()) <= sum(before.values()):
        raise StepError("no weight was compressed: all that NNCF takes are integers already", subject="from",
                        hint="compress the float model this one was made from")  # fmt: skip
    if problem := _missing(made, options):
        raise StepError(
            problem,
            subject="with.mode" if made else "model",
            hint="set all_layers: true" if made else "leave this step out",
        )
    return {"compressed": made, "warnings": session.warnings}


def _made(path: Path) -> dict[str, int]:
    """How many weights of the file at `path` are stored in which low-bit dtype."""
    made: dict[str, int] = {}
    for constant in openvino_ir.constants(openvino_ir.parse(path)):
        if constant.stored == "compressed" and constant.dtype in EIGHT | FOUR:
            made[constant.dtype] = made.get(constant.dtype, 0) + 1
    return made


def _missing(made: dict[str, int], options: OpenVinoCompressWeights) -> str:
    if not made:
        return "no weight was compressed: the model has no layer that NNCF takes, or all are ignored"
    if options.mode.startswith("int4") and options.ratio != 0 and not FOUR & made.keys():
        return "no weight was compressed to 4 bits: embeddings and the last layer stay in 8, and there is no other"
    return ""


def _group_size(options: OpenVinoCompressWeights, message: str) -> StepError:
    layers = [(name, int(size)) for name, size in findall(r'"(.+?)" \(channel size: (\d+)\)', message)]
    size = options.group_size or 128
    common = gcd(*(n for _, n in layers))
    fitting = common & -common  # the largest power of two that divides them all
    better = fitting if fitting >= 8 else -1
    shown = ", ".join(f"{name} ({n})" for name, n in layers[:3]) + (", ..." if len(layers) > 3 else "")
    return StepError(
        f"group_size {size} does not divide the channels of {len(layers)} layers: {shown}",
        subject="with.group_size",
        details=message,
        hint=f"group_size: {better}, or put those layers under ignored",
    )


def confirm(parent: Artifact, artifact: Artifact, options: OpenVinoCompressWeights, context: Context) -> list[str]:
    """Re-reads the IR: weights in the bits asked for, and fewer bytes of them than the parent has."""
    complaints = [problem] if (problem := _missing(_made(artifact.path), options)) else []
    before, after = (_weight_bytes(item) for item in (parent, artifact))
    if after >= before:
        complaints.append(f"the weights have {after} bytes, the parent's {before}")
    return complaints


def _weight_bytes(item: Artifact) -> int:
    return item.path.with_suffix(".bin").stat().st_size


PASS = Pass(
    name="openvino.compress_weights",
    version=1,
    source="openvino",
    target="openvino",
    summary="Store an IR's weights in 8 or 4 bits (NNCF)",
    run=run,
    confirm=confirm,
    options=OpenVinoCompressWeights,
    fidelity="lossy",
    tools=("openvino", "nncf"),
    modules=("optkit.formats.warm.openvino", "optkit.formats.warm.nncf"),
    needs_data=lambda options: options.fits,
    timeout_seconds=7200.0,
)
