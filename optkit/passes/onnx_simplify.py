"""onnx.simplify: folds constants and removes what an ONNX graph does not need, with onnxsim."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from optkit.artifact import Artifact
from optkit.errors import StepCrashed, StepError, StepTimeout
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx import simplify_child as onnx_simplify_child
from optkit.plugin import Context, Options, Pass, need

# Makes of MatMul and Add a Gemm between reshapes: more nodes, in no pattern that transformer fusions know.
_SKIPPED = ("fuse_matmul_add_bias_into_gemm_batched",)

_CONSTANTS_APART = 4
"""The IR version from which a constant need not be an input as well."""


class SimplifyOptions(Options):
    """What onnxsim does."""

    skip_constant_folding: bool = Field(False, description="leave computations on constants in the graph")
    skip_shape_inference: bool = Field(False, description="write no shapes of intermediate values into the file")
    skip_optimizers: bool = Field(False, description="fuse and remove no operators: fold constants only")
    skip_fuse_bn: bool = Field(False, description="leave batch normalisation beside its convolution")
    largest_constant_mb: int = Field(1024, ge=0, le=2047, description="fold nothing into a larger tensor than this")
    time_limit_seconds: float = Field(300.0, gt=0, description="stop onnxsim after this time")


def run(artifact: Artifact, out_dir: Path, options: SimplifyOptions, context: Context) -> dict[str, Any]:
    """Simplify a model in a child process; dynamic dims stay dynamic.

    Raises StepCrashed where onnxsim dies, StepTimeout where it takes longer than `time_limit_seconds`, StepError where
    it fails.
    """
    need("onnx")
    if importlib.util.find_spec("onnxsim") is None:
        need("onnxsim")
    before = onnx_model.count_operators(onnx_model.load(artifact.path, weights=False))
    written = context.scratch / "simplified.onnx"
    context.progress("simplifying with onnxsim", None)
    with _source(artifact.path, context.scratch) as source:
        _simplify(source, written, options)
    model = onnx_model.load(written, weights=False)
    if written.stat().st_size < onnx_model.EXTERNAL_FROM and onnx_model.files(written) == (written.name,):
        shutil.move(written, out_dir / onnx_model.MAIN)
    else:
        onnx_model.save(model, out_dir, source=written.parent)
        for name in onnx_model.files(written):
            (written.parent / name).unlink()
    after = onnx_model.count_operators(model)
    return {
        "nodes": {"before": before.total(), "after": after.total()},
        "operators": {"before": dict(sorted(before.items())), "after": dict(sorted(after.items()))},
    }


def confirm(parent: Artifact, artifact: Artifact, options: SimplifyOptions, context: Context) -> list[str]:
    """Whether the result is valid, has no more nodes than its source, and dynamic dims where that has them."""
    import onnx

    before, after = (onnx_model.count_operators(onnx_model.load(a.path, weights=False)) for a in (parent, artifact))
    complaints = []
    if after.total() > before.total():
        complaints.append(f"it has {after.total()} nodes, its source has {before.total()}")
    old, new = (onnx_model.describe(a.path, a.meta) for a in (parent, artifact))
    now = {spec.name: spec for spec in (*new.inputs, *new.outputs)}
    for spec in (*old.inputs, *old.outputs):
        got = now.get(spec.name)
        if got is None or got.shape is None or spec.shape is None:
            continue
        fixed = [axis for axis, (was, size) in enumerate(zip(spec.shape, got.shape, strict=False))
                 if isinstance(was, str) and isinstance(size, int)]  # fmt: skip
        complaints += [f"axis {axis} of {spec.name} was dynamic and is {got.shape[axis]}" for axis in fixed]
    try:
        onnx.checker.check_model(str(artifact.path))
    except onnx.checker.ValidationError as error:
        complaints.append(f"it is not valid ONNX: {error}")
    return complaints


@contextmanager
def _source(path: Path, scratch: Path) -> Iterator[Path]:
    """The file that onnxsim reads: `path`, or where that is of an IR before 4, a copy that says 4.

    IR 3 wants every constant to be an input too, which onnxsim's folded constants are not, and IR 4 allows either.
    """
    model = onnx_model.load(path, weights=False)
    if model.ir_version >= _CONSTANTS_APART:
        yield path
        return
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        model.ir_version = _CONSTANTS_APART
        onnx_model.save(model, Path(folder), source=path.parent)
        yield Path(folder) / onnx_model.MAIN


def _simplify(source: Path, target: Path, options: SimplifyOptions) -> None:
    arguments = {
        "perform_optimization": not options.skip_optimizers,
        "skip_fuse_bn": options.skip_fuse_bn,
        "skipped_optimizers": list(_SKIPPED),
        "skip_constant_folding": options.skip_constant_folding,
        "skip_shape_inference": options.skip_shape_inference,
        "tensor_size_threshold": f"{options.largest_constant_mb}MB",
    }
    script = onnx_simplify_child.__file__
    command = [sys.executable, "-P", script, str(source.resolve()), str(target.resolve()), json.dumps(arguments)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False,
                               cwd=target.parent, timeout=options.time_limit_seconds)  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise StepTimeout(
            f"onnxsim was stopped after {options.time_limit_seconds:g} s",
            hint="set with.skip_constant_folding, raise with.time_limit_seconds, or leave this step out",
            subject="with.time_limit_seconds",
        ) from error
    if child.returncode == 0:
        return
    details = "\n".join((child.stdout + child.stderr).strip().splitlines()[-20:])
    hint = "leave this step out, or try with.skip_constant_folding or with.skip_optimizers"
    if child.returncode < 0:
        raise StepCrashed(f"onnxsim died: {_signal(-child.returncode)}", hint=hint, details=details)
    raise StepError(f"onnxsim failed: {_last_words(details) or f'exit code {child.returncode}'}", hint=hint,
                    details=details)  # fmt: skip


def _last_words(log: str) -> str:
    """The message of the exception that a log ends with, or its last line."""
    lines = log.splitlines()
    starts = [i for i, line in enumerate(lines) if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return " ".join(lines[starts[-1] if starts else -1 :])


def _signal(number: int) -> str:
    names: Mapping[int, str] = {signal.SIGSEGV: "segmentation fault (SIGSEGV)", signal.SIGABRT: "aborted (SIGABRT)",
                                signal.SIGKILL: "killed (SIGKILL), often for lack of memory"}  # fmt: skip
    return names.get(number) or f"signal {number}"


PASS = Pass(
    name="onnx.simplify",
    version=1,
    source="onnx",
    target="onnx",
    summary="fold constants and remove needless operators (onnxsim)",
    run=run,
    confirm=confirm,
    options=SimplifyOptions,
    fidelity="rounding",
    tools=("onnxsim", "onnx", "onnxruntime"),
)
