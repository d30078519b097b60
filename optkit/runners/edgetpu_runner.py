"""Runs files compiled for the Edge TPU where there is one; elsewhere says what is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optkit.artifact import Artifact
from optkit.errors import UnavailableError
from optkit.formats.edgetpu import file as edgetpu_file
from optkit.formats.edgetpu import session as edgetpu_session
from optkit.formats.tflite import session as tflite_session
from optkit.formats.tflite.model import Contract
from optkit.plugin import Runner


@contextmanager
def open_model(
    artifact: Artifact, device: str = "cpu", threads: int = 1, precision: str | None = None
) -> Iterator[tflite_session.TfliteSession]:
    """A session on an Edge TPU: "edgetpu" (as "cpu") is the first, "edgetpu:1" the second; also "usb:0", "pci:0".

    threads: of the operators that stayed on the CPU. Raises NotHereError where the runtime library or the device is
    missing, UnavailableError for another device or any precision, SourceError for a damaged file.
    """
    found = re.fullmatch(r"(cpu|edgetpu|usb|pci)(?::(\d+))?", device)
    if found is None:
        raise UnavailableError(f"an Edge TPU is not the device {device!r}", hint="edgetpu, edgetpu:1, usb:0 or pci:0")
    if precision is not None:
        raise UnavailableError(f"an Edge TPU computes in 8-bit integers and cannot be asked for {precision}",
                               hint="deliver another format for it")  # fmt: skip
    record = edgetpu_file.read(artifact.path)
    edgetpu_file.check(artifact.path, record)
    agreed = Contract.from_json(record["contract"])
    kind, number = found[1], found[2]
    option = (kind if kind in ("usb", "pci") else "") + (f":{number}" if number else "")
    runtime, delegate = edgetpu_session.delegate(option)
    key = agreed.key(next(iter(tflite_session.combinations(agreed))))

    def connect() -> edgetpu_session.Positions:
        made = edgetpu_session.interpreter(artifact.path, runtime, [delegate], threads)
        return edgetpu_session.Positions(made, record["ports"], key)

    name = f"Edge TPU {option}".strip()
    yield tflite_session.TfliteSession(artifact.path, agreed, threads, connect, name)


def inspect(path: Path) -> dict[str, Any]:
    """JSON data about a compiled file: the compiler's version and table, and what a session takes."""
    record = edgetpu_file.read(path)
    edgetpu_file.check(path, record)
    report = record["compiler"]
    return {
        "compiler": report["version"],
        "operators": {f"{row['operator']} ({row['status']})": row["count"] for row in report["operators"]},
        "on_tpu": report["on_tpu"],
        "on_cpu": report["on_cpu"],
        "subgraphs": report["subgraphs"],
        "memory": report["memory"],
        "precision": "8-bit integers",
        "fixed_sizes": record["contract"]["sizes"],
        "channels_last": record["contract"]["channels_last"],
        "size_bytes": record["file"]["size_bytes"],
    }


RUNNER = Runner(
    format="edgetpu",
    version=1,
    main=edgetpu_file.MAIN,
    suffixes=("_edgetpu.tflite",),
    describe=edgetpu_file.describe,
    open=open_model,
    inspect=inspect,
    tools=("ai-edge-litert",),
)
