"""tflite.to_edgetpu: an int8 TFLite file compiled for Coral's Edge TPU."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from optkit.artifact import Artifact
from optkit.errors import SourceError, StepError
from optkit.formats.edgetpu import compiler as edgetpu_compiler
from optkit.formats.edgetpu import file as edgetpu_file
from optkit.formats.edgetpu import rules as edgetpu_rules
from optkit.formats.onnx.refusal import Refusal
from optkit.formats.tflite import look as tflite_look
from optkit.formats.tflite import model as tflite_model
from optkit.plugin import Context, Options, Pass

SECONDS = 3600.0


class TfliteToEdgeTpu(Options):
    """What may stay on the CPU, and how the compiler looks for what may not."""

    allow_cpu: bool = Field(
        False, description="whether operators may stay on the CPU, which runs all that follow the first of them too"
    )
    min_runtime_version: int | None = Field(
        None,
        ge=10,
        le=14,
        description="the oldest Edge TPU runtime that has to run the file; the compiler's own default",
    )
    search_delegate: bool = Field(
        False, description="where a part cannot be compiled, look for a smaller one that can; the rest stays on the CPU"
    )


def run(artifact: Artifact, out_dir: Path, options: TfliteToEdgeTpu, context: Context) -> dict[str, Any]:
    """Looks at the file, then compiles it. Notes: the compiler's table of operators, and what the file takes.

    Raises StepError for a file that is not full-integer or whose sizes vary, for operators that would stay on the CPU
    unless that is allowed, and for what the compiler refuses; after that look, UnavailableError without the compiler.
    """
    model = tflite_model.read(artifact.path)
    if faults := edgetpu_rules.blocking(model):
        raise _refused("an Edge TPU cannot take the file", faults)
    left = edgetpu_rules.on_the_cpu(model)
    total = sum(1 for _ in tflite_look.operations(model))
    if left and (len(left) == total or not options.allow_cpu):
        raise _refused(f"{len(left)} of {total} operators would stay on the CPU", left)
    compiler = edgetpu_compiler.find(f"the file qualifies, {total - len(left)} of {total} operators, but ")
    source = context.scratch / "model.tflite"  # a copy: the compiler calls what it writes after what it reads
    shutil.copyfile(artifact.path, source)
    (context.scratch / "compiled").mkdir()
    extra = ["-d"] if options.search_delegate else []
    if options.min_runtime_version is not None:
        extra += ["-m", str(options.min_runtime_version)]
    context.progress("compiling", None)
    made, report = edgetpu_compiler.compile_file(compiler, source, context.scratch / "compiled", extra, SECONDS)
    if report.left and not options.allow_cpu:
        named = "; ".join(f"{row.count} {row.operator}: {row.status}" for row in report.left)
        raise StepError(f"{edgetpu_compiler.NAME} left operators on the CPU: {named}", subject="with.allow_cpu",
                        hint="replace them in the model, or set with.allow_cpu: true")  # fmt: skip
    edgetpu_file.write(out_dir, made, model, report.to_json())
    return {
        "compiler": report.to_json(),
        "left_to_cpu": [refusal.to_json() for refusal in left],
        "file": tflite_look.file_signatures(model),
        "size_bytes": (out_dir / edgetpu_file.MAIN).stat().st_size,
    }


def _refused(what: str, found: Sequence[Refusal]) -> StepError:
    """The first of what is in the way in full, the rest in the details."""
    told = []
    for refusal in found:
        where = " ".join(filter(None, (refusal.operator, refusal.node and repr(refusal.node))))
        where += f" of the torch module {refusal.module}" if refusal.module else ""
        told.append(f"{where}: {refusal.what}" if where else refusal.what)
    more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
    return StepError(f"{what}: {told[0]}{more}", subject="from", details="\n".join(told), hint=found[0].hint)


def confirm(parent: Artifact, artifact: Artifact, options: TfliteToEdgeTpu, context: Context) -> list[str]:
    """Re-reads the compiled file: a part for the Edge TPU, the same inputs and outputs, and its own sidecar."""
    try:
        edgetpu_file.check(artifact.path, edgetpu_file.read(artifact.path))
        return edgetpu_file.differences(tflite_model.read(parent.path), artifact.path)
    except SourceError as error:
        return [error.what]


def compiler_here(options: TfliteToEdgeTpu) -> list[str]:
    """The compiler's version, which decides the output; none where it is not here."""
    path = shutil.which(edgetpu_compiler.NAME)
    return [edgetpu_compiler.version(path)] if path else []


PASS = Pass(
    name="tflite.to_edgetpu",
    version=1,
    source="tflite",
    target="edgetpu",
    summary="Compile an int8 TFLite file for Coral's Edge TPU",
    run=run,
    confirm=confirm,
    options=TfliteToEdgeTpu,
    fidelity="rounding",
    tools=("ai-edge-litert",),
    machine=compiler_here,
    modules=("optkit.formats.warm.tflite",),
    timeout_seconds=SECONDS,
)
