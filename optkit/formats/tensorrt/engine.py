"""A TensorRT engine at rest: `model.engine`, and `engine.json` that says what it is and what it was built for.

An engine cannot be read without the GPU driver and the very version that wrote it; its sidecar can, anywhere.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optkit.artifact import Signature, digest_file
from optkit.errors import NotHereError, SourceError, StepError, UnavailableError
from optkit.formats.tensorrt import cuda_driver
from optkit.plugin import need

MAIN = "model.engine"
SIDECAR = "engine.json"
SCHEMA = 1

BUILDERS = ("tensorrt_rtx", "tensorrt")
"""The modules that can build, the one that is taken first. TensorRT 10 and 11 are both called tensorrt."""

TITLES = {"tensorrt_rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}
_DISTRIBUTIONS = {"tensorrt_rtx": ("tensorrt_rtx",), "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")}
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "INT32": "int32",
           "INT64": "int64", "UINT8": "uint8", "BOOL": "bool", "INT4": "int4", "FP8": "float8",
           "FP4": "float4"}  # fmt: skip


def installed() -> tuple[str, ...]:
    """The builders in this environment, found without importing one: that of full TensorRT may crash."""
    return tuple(name for name in BUILDERS if importlib.util.find_spec(name) is not None)


def distributions() -> tuple[str, ...]:
    """The distributions that decide what an engine is: those installed, or the one to install."""
    found = []
    for builder in installed():
        for name in _DISTRIBUTIONS[builder]:
            try:
                importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
            found.append(name)
            break
    return tuple(found) or ("tensorrt_rtx",)


def built_for_here(builder: str) -> list[str]:
    """What of this machine decides an engine: nothing with TensorRT-RTX, else the GPU and the operating system."""
    if builder == "tensorrt_rtx" or (builder == "auto" and BUILDERS[0] in installed()):
        return []
    machine = here()
    return [machine.os, machine.machine, *(f"{gpu.name} {gpu.capability}" for gpu in machine.gpus[:1])]


def load(builder: str) -> Any:
    """A builder's module. Raises UnavailableError where it is not installed, NotHereError where it cannot start here.

    Full TensorRT is not even imported without a GPU driver, since it can take the process down with it.
    """
    if builder == "tensorrt" and importlib.util.find_spec(builder) is None:
        raise UnavailableError(
            "TensorRT is not installed",
            hint="it comes from NVIDIA's own index: pip install tensorrt --extra-index-url https://pypi.nvidia.com; "
            'TensorRT-RTX comes from PyPI: pip install "optkit[tensorrt-rtx]"',
        )
    if builder == "tensorrt" and not cuda_driver.devices():
        raise NotHereError("TensorRT needs an NVIDIA GPU and its driver, and this machine has none",
                           hint="build with TensorRT-RTX, which needs neither: with.builder: tensorrt_rtx")  # fmt: skip
    return need(builder)


def choose(builder: str) -> str:
    """The builder to use for an option's value; "auto" takes the first that is installed."""
    if builder != "auto":
        return builder
    return next(iter(installed()), BUILDERS[0])


@functools.cache
def logger(builder: str) -> Any:
    """The process's one logger for a builder; it keeps warnings and errors in `messages`, which is cleared by hand.

    TensorRT takes the first logger it is given for good, so there can be no other.
    """
    trt = load(builder)

    class Collect(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[str, str]] = []

        def log(self, severity: Any, message: str) -> None:
            if severity.name in ("INTERNAL_ERROR", "ERROR", "WARNING"):
                self.messages.append((severity.name, message))

    return Collect()


def network_flags(trt: Any) -> int:
    """What a network is created with: TensorRT 10 has to be told to keep to the graph's types, 11 and RTX always do."""
    if int(trt.__version__.split(".")[0]) != 10:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def dtype_name(kind: Any) -> str:
    """optkit's name of a TensorRT data type."""
    name: str = kind.name
    return _DTYPES.get(name, name.lower())


def write(folder: Path, blob: Any, built: Mapping[str, Any]) -> None:
    """Write an engine and, beside it, what it was built for."""
    path = folder / MAIN
    with path.open("wb") as handle:
        handle.write(memoryview(blob))
    record = {"schema": SCHEMA, **built, "engine": {"size_bytes": path.stat().st_size, "sha256": digest_file(path)}}
    (folder / SIDECAR).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """What an engine was built for. Raises SourceError for an engine without its sidecar, or with a damaged one."""
    sidecar = path.parent / SIDECAR
    if not path.is_file():
        raise SourceError(f"there is no engine at {path}", hint="check the path", subject="model")
    try:
        built: dict[str, Any] = json.loads(sidecar.read_text(encoding="utf-8"))
        if built["schema"] != SCHEMA:
            raise ValueError(f"schema {built['schema']}, not {SCHEMA}")
        Signature.from_json(built["signature"])
        built["builder"], built["version"], built["profiles"], built["engine"]["size_bytes"]
    except FileNotFoundError as error:
        raise SourceError(
            f"{path.name} has no {SIDECAR} beside it, which says what it takes and which machine it is for",
            hint="copy the whole folder, or build the engine again with onnx.to_tensorrt",
            subject="model",
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{sidecar} is damaged: {error}", hint="build the engine again with onnx.to_tensorrt", subject="model"
        ) from error
    if path.stat().st_size != built["engine"]["size_bytes"]:
        raise SourceError(
            f"{path.name} has {path.stat().st_size} bytes, its {SIDECAR} says {built['engine']['size_bytes']}: "
            "it is cut short, or another engine's",
            hint="copy both files again from where they were made",
            subject="model",
        )
    return built


def check(path: Path, built: Mapping[str, Any]) -> None:
    """Raise SourceError where an engine is not the one that its sidecar describes; the runtime may crash on such."""
    if digest_file(path) != built["engine"]["sha256"]:
        raise SourceError(f"{path.name} is not the engine that its {SIDECAR} describes: its bytes have changed",
                          hint="copy both files again, or build the engine again", subject="model")  # fmt: skip


def describe(path: Path, meta: Mapping[str, Any]) -> Signature:
    """Inputs and outputs, from the sidecar: needs neither GPU nor TensorRT."""
    return Signature.from_json(read(path)["signature"])


def inspect(path: Path) -> dict[str, Any]:
    """JSON data about an engine: what it was built with and for, its ranges, and what its layers compute in."""
    built = read(path)
    check(path, built)
    kinds: dict[str, int] = {}
    for layer in built["compute"].values():
        name = f"{layer['dtype']} from int8" if layer["quantised"] else layer["dtype"]
        kinds[name] = kinds.get(name, 0) + 1
    return {
        "built_for": target(built),
        **{key: built[key] for key in ("builder", "version", "os", "machine", "compute_capability", "options")},
        "profiles": built["profiles"],
        "operators": built["layers"],
        "precision": ", ".join(f"{name} ({n})" for name, n in sorted(kinds.items())) or "no products",
        "runs_here": refusal(built, here()) or "yes",
    }


@dataclass(frozen=True)
class Machine:
    """What decides whether an engine runs: the operating system, the processor, the GPUs."""

    os: str
    machine: str
    gpus: tuple[cuda_driver.Device, ...]

    def __str__(self) -> str:
        gpus = ", ".join(f"{gpu.name} (compute capability {gpu.capability})" for gpu in self.gpus)
        return f"{self.os} {self.machine} with {gpus or 'no NVIDIA GPU or no driver for one'}"


def here() -> Machine:
    """This machine."""
    return Machine(platform.system(), platform.machine(), cuda_driver.devices())


def target(built: Mapping[str, Any]) -> str:
    """What an engine was built for, in words."""
    title = f"{TITLES[built['builder']]} {built['version']}"
    where = "" if built["builder"] == "tensorrt_rtx" else f", {built['os']} {built['machine']}"
    return f"{title}{where}, {capabilities(built)}"


def capabilities(built: Mapping[str, Any]) -> str:
    """The GPUs an engine is for, in words."""
    named = built["compute_capability"]
    if not named or built["options"].get("hardware_compatible") == "ampere_plus":
        return "any GPU of compute capability 8.0 or later"
    return f"a GPU of compute capability {' or '.join(named)}"


def refusal(built: Mapping[str, Any], machine: Machine) -> str | None:
    """The sentence that says why an engine cannot run on a machine, both sides named; None where it can."""
    fitting = [gpu for gpu in machine.gpus if fits(built, gpu.capability)]
    os_bound = built["builder"] == "tensorrt"  # TensorRT-RTX's engines move between Linux and Windows
    if fitting and not (os_bound and (built["os"], built["machine"]) != (machine.os, machine.machine)):
        return None
    return f"the engine was built for {target(built)}; this machine is {machine}"


def fits(built: Mapping[str, Any], capability: str) -> bool:
    """Whether a GPU of a compute capability can run an engine."""
    named: Sequence[str] = built["compute_capability"]
    if not named or built["options"].get("hardware_compatible") == "ampere_plus":
        return _number(capability) >= (8, 0)
    return capability in named


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))


def runtime_problem(built: Mapping[str, Any], version: str) -> UnavailableError | None:
    """Why the installed version cannot read an engine; None where it can."""
    if version == built["version"]:
        return None
    same_or_later = _number(version.split("+")[0]) >= _number(built["version"].split("+")[0])
    if built["options"].get("version_compatible") and same_or_later:
        return None
    title = TITLES[built["builder"]]
    return UnavailableError(
        f"the engine was built by {title} {built['version']} and this environment has {title} {version}",
        hint=f"pip install {built['builder']}=={built['version']}, or build the engine again"
        + (" with version_compatible: true" if built["builder"] == "tensorrt" else ""),
    )


def deserialise(path: Path, built: Mapping[str, Any]) -> tuple[Any, Any]:
    """The runtime and the engine, on the current GPU; keep both. Raises StepError with what TensorRT said."""
    trt, log = load(built["builder"]), logger(built["builder"])
    log.messages.clear()
    runtime = trt.Runtime(log)
    if built["options"].get("version_compatible"):
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise StepError(f"{TITLES[built['builder']]} cannot load {path.name}: {last_words(log)}",
                        hint="build the engine again on this machine, with onnx.to_tensorrt")  # fmt: skip
    return runtime, engine


def last_words(log: Any, most: int = 3) -> str:
    """The last errors a logger heard, without source places and without those that only repeat that no GPU is here."""
    said = [text for severity, text in log.messages if "ERROR" in severity]
    telling = [text for text in said if "catchCudaError" not in text] or said
    return "; ".join(dict.fromkeys(plain(text) for text in telling[-most:])) or "it gave no reason"


def plain(text: str) -> str:
    """A message of TensorRT without error numbers, the function it comes from, and the line of its source."""
    text = " ".join(text.split("[checkMacros.cpp")[0].split())
    text = re.sub(r" In \w+ at /\S+?:\d+\)?$", "", text)
    text = re.sub(r"^\[[\w.]+:[\w:]+:\d+\] ?", "", text)
    text = re.sub(r"^([\w:]+: )?Error Code \d+: [\w ]+\(", "", text)
    text = re.sub(r"^(\[[\w.]+:\d+: \w+\]|[\w.]+:\d+:) ", "", text)
    return text.removesuffix(")") if text.count(")") > text.count("(") else text
