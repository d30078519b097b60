"""Gates held against what a run measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optkit.parity.bounds import task_verdict
from optkit.report import GateRow
from optkit.spec.gates import Gate


@dataclass(frozen=True)
class Measured:
    """What a run knows of one delivery, for its gates.

    speeds: by what it was raced against, "source" or "parent". untimed: why it was not.
    scores: what the task metrics measured. seconds: of the passes on the way to it; None where that is not known.
    here: whether its check was made on this machine.
    """

    size_bytes: int
    source_bytes: int | None
    parent_bytes: int | None
    seconds: float | None
    speeds: Mapping[str, Mapping[str, Any] | None]
    scores: Mapping[str, Mapping[str, Any]]
    untimed: str = ""
    here: bool = True


def judged(gates: Sequence[tuple[Gate, str]], measured: Measured | None) -> list[GateRow]:
    """A row for each gate, given with its scope. measured: None where the step did not hold."""
    return [_row(gate, scope, measured) for gate, scope in gates]


def _row(gate: Gate, scope: str, measured: Measured | None) -> GateRow:
    def row(status: str, value: float | None, text: str) -> GateRow:
        return {"gate": gate.text, "scope": scope, "status": status, "measured": value, "limit": gate.value,
                "unit": gate.unit, "text": text}  # fmt: skip

    if measured is None:
        return row("not judged", None, "the step did not hold")
    if gate.bound is not None:
        score = measured.scores.get(gate.bound.info.task)
        if score is None and not measured.here:
            return row("deferred", None, "its metric is measured on the target")
        verdict = task_verdict(gate.bound, score or {})
        return row("held" if verdict.held else "failed", verdict.measured, verdict.text)
    if gate.timed and not measured.here:
        return row("deferred", None, "its speed is measured on the target")
    value, text = _TELL[gate.measure.partition("_")[0]](gate, measured)
    if value is None:
        return row("failed", None, f"{text}, needs {gate.op} {gate.text.partition(gate.op)[2].strip()}")
    return row("held" if gate.allows(value) else "failed", value, text)


def _size(gate: Gate, measured: Measured) -> tuple[float | None, str]:
    if not gate.relative:
        return float(measured.size_bytes), f"{_bytes(measured.size_bytes)}"
    other = measured.source_bytes if gate.relative == "source" else measured.parent_bytes
    if not other:
        return None, f"the {gate.relative}'s size is not known"
    share = measured.size_bytes / other
    return share, f"{share:.1%} of the {gate.relative}: {_bytes(measured.size_bytes)} of {_bytes(other)}"


def _speedup(gate: Gate, measured: Measured) -> tuple[float | None, str]:
    speed = measured.speeds.get(gate.relative)
    if speed is None:
        return None, measured.untimed or "its speed was not measured"
    r = speed["ratio"]
    text = f"{r['value']:.2f} times as fast as {speed['against']} ({r['low']:.2f} to {r['high']:.2f})"
    return r["value"], text + (", within the noise of its measurement" if r["low"] < gate.value <= r["high"] else "")


def _latency(gate: Gate, measured: Measured) -> tuple[float | None, str]:
    speed = _raced(measured)
    if speed is None:
        return None, measured.untimed or "its latency was not measured"
    name = gate.measure.rpartition("_")[2]
    return speed["latency_ms"][name], f"{name} {speed['latency_ms'][name]:.3g} ms{_at(speed)}"


def _throughput(gate: Gate, measured: Measured) -> tuple[float | None, str]:
    speed = _raced(measured)
    if speed is None or speed.get("samples_per_second") is None:
        return None, measured.untimed or "its throughput was not measured"
    return speed["samples_per_second"], f"{speed['samples_per_second']:.4g} samples/s{_at(speed)}"


def _memory(gate: Gate, measured: Measured) -> tuple[float | None, str]:
    speed = measured.speeds.get(gate.relative) if gate.relative else _raced(measured)
    if speed is None or speed.get("peak_bytes") is None:
        return None, measured.untimed or "its memory was not measured"
    mine = speed["peak_bytes"]
    if not gate.relative:
        return float(mine), f"{_bytes(mine)} resident at most{_at(speed)}"
    other = speed.get("parent_peak_bytes")
    if not other:
        return None, f"the {gate.relative}'s memory is not known"
    share = mine / other
    return share, f"{share:.1%} of the {gate.relative}: {_bytes(mine)} of {_bytes(other)} resident at most{_at(speed)}"


def _raced(measured: Measured) -> Mapping[str, Any] | None:
    """A race that it took part in; its own figures are the same whatever it ran beside."""
    return measured.speeds.get("source") or measured.speeds.get("parent")


def _at(speed: Mapping[str, Any]) -> str:
    sizes = "".join(f", {dim} {size}" for dim, size in speed["sizes"].items())
    return f"{sizes}, {speed['threads']} threads"


def _convert(gate: Gate, measured: Measured) -> tuple[float | None, str]:
    if measured.seconds is None:
        return None, "how long the passes took is not known"
    return measured.seconds, f"its passes took {measured.seconds:.3g} s"


_TELL = {"size": _size, "speedup": _speedup, "latency": _latency, "convert": _convert, "throughput": _throughput,
         "peak": _memory}  # fmt: skip


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count} B"
