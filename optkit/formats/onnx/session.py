"""Opening an ONNX model in onnxruntime, with its errors told apart."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.errors import OptkitError, SourceError, StepError, UnavailableError
from optkit.plugin import need

if TYPE_CHECKING:
    from optkit.plugin import Tensors

CPU = "CPUExecutionProvider"


def open_session(
    model: Path | bytes,
    *,
    threads: int = 1,
    providers: Sequence[Any] = (CPU,),
    folder: Path | None = None,
    optimise: bool = True,
    prepack: bool = True,
    chosen: Mapping[str, Any] | None = None,
) -> Any:
    """An InferenceSession over a file, or over bytes whose references are relative to `folder`.

    threads: of one operator; operators run one after another. prepack: keep a copy of weights in the layout that the
    kernels like best, which costs the memory of the model once more. chosen: session options by name, over all else.
    Raises UnavailableError where the first of `providers` is not there or did not start, SourceError where the model
    is broken or too new, StepError where onnxruntime has no kernel for it.
    """
    ort = need("onnxruntime")
    wanted = providers[0][0] if isinstance(providers[0], tuple) else providers[0]
    there = ort.get_available_providers()
    if wanted not in there:
        raise UnavailableError(
            f"onnxruntime {ort.__version__} has no {wanted} here; it has {', '.join(there)}",
            hint="install the onnxruntime build for that device, or use device cpu",
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # workers share the cores
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors come as exceptions; warnings concern choices made on purpose
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if (chosen or {}).get("execution_mode") == "parallel":
        options.inter_op_num_threads = threads
    for option, value in (chosen or {}).items():
        _set(ort, options, option, value)
    name = model.name if isinstance(model, Path) else "the model"
    with ort_errors(name):
        session = ort.InferenceSession(
            str(model) if isinstance(model, Path) else model, options, providers=list(providers)
        )
    session.disable_fallback()
    _confirm(session.get_session_options(), options, chosen or {})
    if wanted not in session.get_providers():
        raise UnavailableError(
            f"onnxruntime did not start {wanted} for {name}; it uses {', '.join(session.get_providers())}",
            hint="see optkit doctor for the device's driver",
        )
    return session


_NAMED = {
    "graph_optimization_level": ("GraphOptimizationLevel", "ORT_ENABLE_"),
    "execution_mode": ("ExecutionMode", "ORT_"),
}


def _set(ort: Any, options: Any, name: str, value: Any) -> None:
    if name == "allow_spinning":
        for pool in ("intra_op", "inter_op"):
            options.add_session_config_entry(f"session.{pool}.allow_spinning", str(int(value)))
    elif name in _NAMED:
        kind, prefix = _NAMED[name]
        word = "ORT_DISABLE_ALL" if value == "disable" else f"{prefix}{value.upper()}"
        setattr(options, name, getattr(getattr(ort, kind), word))
    else:
        setattr(options, name, value)


def _confirm(took: Any, asked: Any, chosen: Mapping[str, Any]) -> None:
    """Raise UnavailableError for an option that onnxruntime did not take: one thread cannot run in parallel mode."""
    for name in chosen:
        if name == "allow_spinning":
            key = "session.intra_op.allow_spinning"
            values = took.get_session_config_entry(key), asked.get_session_config_entry(key)
        else:
            values = getattr(took, name), getattr(asked, name)
        if values[0] != values[1]:
            told = [getattr(value, "name", str(value)) for value in values]
            hint = "more threads, or inter_op_num_threads of 2" if name == "execution_mode" else f"leave {name} out"
            raise UnavailableError(f"onnxruntime has {name} at {told[0]} when asked for {told[1]}", hint=hint)


@dataclass(frozen=True)
class Opened:
    """An open model for a pass that tries something out; see `optkit.plugin.Session`."""

    session: Any
    provider: str = CPU

    def infer(self, tensors: Tensors) -> Tensors:
        """Every output by name."""
        names = [output.name for output in self.session.get_outputs()]
        with ort_errors("the model"):
            return dict(zip(names, self.session.run(names, dict(tensors)), strict=True))


@contextmanager
def opened(path: Path, threads: int) -> Iterator[Opened]:
    """The model in a file, open on the CPU."""
    yield Opened(open_session(path, threads=threads))


@contextmanager
def ort_errors(name: str) -> Iterator[None]:
    """Turn onnxruntime's exceptions about the model `name` into optkit's."""
    try:
        yield
    except OptkitError:
        raise
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise _translated(error, name) from error


def _before_seven(operator: str, version: int) -> bool:
    """Whether an operator of the default domain was defined anew in opset 7, the first that onnxruntime has."""
    import onnx

    try:
        return version < 7 and onnx.defs.get_schema(operator, 7).since_version != version
    except onnx.defs.SchemaError:
        return False


def _translated(error: Exception, name: str) -> OptkitError:
    # [ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/.../model.cc:256 onnxruntime::Model::Model(...) text
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error)).strip()
    text = re.sub(r"/onnxruntime_src/\S+ [^\n]*?\) (?=[A-Z])", "", text)
    text = re.sub(r"^Load model from .*? failed: *", "", text)
    kind, details = type(error).__name__, str(error)
    if found := re.search(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)", text):
        return SourceError(
            f"{name} has IR version {found[1]}, and the installed onnxruntime takes up to {found[2]}",
            hint=f"pip install -U onnxruntime, or export with ir_version {found[2]} or lower",
            subject="model",
            details=details,
        )
    if found := re.search(r"Opset (\d+) is under development.*till opset (\d+)", text, re.DOTALL):
        return SourceError(
            f"{name} uses opset {found[1]}, and the installed onnxruntime takes up to {found[2]}",
            hint=f"pip install -U onnxruntime, or export with opset {found[2]} or lower",
            subject="model",
            details=details,
        )
    if kind == "NoSuchFile" or "External data path" in text or "External initializer" in text:
        return SourceError(
            f"{name}: a file of the model is missing ({text})",
            subject="model",
            details=details,
            hint="a model is its whole folder: look for external data left behind or renamed",
        )
    if kind == "InvalidProtobuf":
        return SourceError(
            f"{name} is not an ONNX model or is damaged", hint="export it again", subject="model", details=details
        )
    if (
        kind == "NotImplemented"
        and (old := re.search(r"implementation for (\w+)\((\d)\)", text))
        and _before_seven(old[1], int(old[2]))
    ):
        return SourceError(
            f"{name} is of an opset before 7, the first that onnxruntime runs: {old[1]} means another thing since",
            hint="upgrade it: onnx.save(onnx.version_converter.convert_version(onnx.load(path), 17), new_path)",
            subject="model",
            details=details,
        )
    if kind == "NotImplemented":
        return StepError(
            f"onnxruntime has no kernel for {name}: {text}",
            details=details,
            hint="keep that operator in float32, or run the model on another device",
        )
    if found := re.search(r"Cannot parse data from external tensors.* tensor: (\S+)", text):
        return SourceError(
            f"{name} keeps {found[1]!r}, whose values shapes depend on, in external data, where onnxruntime needs it "
            "in the file",
            hint="save the model with onnx.save(..., save_as_external_data=True, size_threshold=1024)",
            subject="model",
            details=details,
        )
    if found := re.search(r"Duplicate definition of name \((.*?)\)", text):
        return SourceError(
            f"two values in {name} are called {found[1]!r}",
            hint="where the exporter took an output's name for an inner value too, give the output another name",
            subject="model",
            details=details,
        )
    wrong = ("Invalid model", "invalid model", "Type Error", "ype inference failed", "is not a registered function/op")
    if kind == "InvalidGraph" or any(part in text for part in wrong):
        return SourceError(
            f"onnxruntime refuses the graph of {name}: {text}",
            subject="model",
            details=details,
            hint="onnx.checker.check_model(path, full_check=True) names the first bad node",
        )
    if kind == "InvalidArgument":
        return StepError(
            f"onnxruntime refuses the input of {name}: {text}",
            details=details,
            hint="compare the shapes with optkit inspect",
        )
    memory = "allocate" in text.lower() or "memory" in text.lower()
    return StepError(
        f"onnxruntime failed on {name}: {text}",
        details=details,
        hint="use smaller batches" if memory else "run onnx.simplify first, or try another opset",
    )
