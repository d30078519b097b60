"""Reports of every kind of outcome, as data, for the tests of what is drawn from them."""

from __future__ import annotations

import copy
from typing import Any

from test_markdown import BLOCKED, DEFERRED, ERROR, FAILED, GOOD, WAIVED, report

MUST: dict[str, Any] = copy.deepcopy(GOOD) | {
    "id": "slower", "status": "failed",
    "must": [{"must": "faster", "held": False, "text": "slower: 0.50 times as fast as onnx (0.40 to 0.60)"},
             {"must": "smaller", "held": True, "text": "10 bytes, onnx has 20"}],
    "speed": {"against": "onnx", "ratio": {"value": 0.5, "low": 0.4, "high": 0.6, "rounds": 9}, "verdict": "slower",
              "sizes": {"batch": 8}, "threads": 2, "provider": "CPU", "latency_ms": {"p50": 2.0},
              "parent_latency_ms": {"p50": 1.0}},
}  # fmt: skip
NOT_HERE = DEFERRED | {
    "id": "board", "on_target": False, "error": {"class": "NotHereError", "what": "no such device", "phase": "check"},
}  # fmt: skip
NAN: dict[str, Any] = copy.deepcopy(GOOD) | {"id": "nan", "status": "failed"}
NAN["check"]["cases"][0] |= {"held": False, "verdicts": []}
NAN["check"]["cases"][0]["source"]["problems"] = [{"kind": "nan", "output": "y", "text": "2 NaN in sample 4"}]
GATED: dict[str, Any] = copy.deepcopy(GOOD) | {"id": "gated", "status": "failed", "gates": [
    {"gate": "size <= 100 kB", "scope": "step", "status": "failed", "measured": 138_300.0, "limit": 100_000.0,
     "unit": "B", "text": "138.3 kB"},
    {"gate": "speedup >= 1.5", "scope": "recipe", "status": "held", "measured": 2.0, "limit": 1.5, "unit": "ratio",
     "text": "2.00 times as fast as source"},
    {"gate": "latency_p90 <= 5 ms", "scope": "recipe", "status": "deferred", "measured": None, "limit": 5.0,
     "unit": "ms", "text": "its speed is measured on the target"},
    {"gate": "convert_seconds <= 60", "scope": "recipe", "status": "not judged", "measured": None, "limit": 60.0,
     "unit": "s", "text": "the step did not hold"},
]}  # fmt: skip
BASELINE: dict[str, Any] = {
    "file": "b.json", "held": False, "problem": "", "hint": "optkit baseline save", "code": "OPK-104",
    "rows": [
        {"step": "onnx", "figure": "size", "status": "worse", "unit": "B", "before": 10.0, "now": 12.0, "limit": 10.1,
         "text": "size 12 B, was 10 B"},
        {"step": "gone", "figure": "delivery", "status": "missing", "unit": "", "before": None, "now": None,
         "limit": None, "text": "it is not delivered any more"},
        {"step": "onnx", "figure": "sqnr_db", "status": "same", "unit": "dB", "before": 30.0, "now": 30.0,
         "limit": 29.0, "text": "30.0 dB, was 30.0 dB"},
    ],
    "changes": ["the recipe changed"], "tolerance": {"size": 0.01},
}  # fmt: skip


def benchmark_row(artifact: str, value: float | None, **more: Any) -> dict[str, Any]:
    """A row of a benchmark; value: times as fast, None for what the others are held against."""
    ratio = value and {"value": value, "low": value * 0.9, "high": value * 1.1, "rounds": 20, "clock": "processor"}
    word = None if value is None else "faster" if value > 1.05 else "slower" if value < 0.95 else "same"
    return {
        "artifact": artifact, "format": "onnx", "batch": 8, "threads": 1, "provider": "CPUExecutionProvider",
        "latency_ms": {"mean": 2.1, "p50": 2.0, "p90": 2.5, "p99": 9.0}, "samples_per_second": 3809.5,
        "open_seconds": 0.25, "first_seconds": 0.05, "peak_bytes": 90_000_000, "bare_bytes": 40_000_000,
        "size_bytes": 3_400_000, "inferences": 900, "ratio": ratio, "verdict": word, "unsteady": "", "settings": {},
        "parity": None, **more,
    }  # fmt: skip


BENCHMARK: dict[str, Any] = {
    "against": "source", "notes": ["trt: not measured, it did not hold or runs elsewhere"], "error": None,
    "rows": [
        benchmark_row("source", None, unsteady="times vary by 7%"), benchmark_row("onnx", 2.3),
        benchmark_row("w8", 0.4, peak_bytes=None),
        benchmark_row("onnx [HINT_OF=bf16]", 3.1, settings={"HINT_OF": "bf16"}, parity={
            "against": "onnx", "equal": False, "cosine": 0.9999, "sqnr_db": 41.0, "problems": []}),
        benchmark_row("onnx", 1.0, batch=1, threads=2),
    ],
}  # fmt: skip
UNMEASURED = BENCHMARK | {"rows": [], "error": {
    "class": "StepCrashed", "code": "OPK-301", "what": "source stopped while its speed was measured",
    "hint": "run it alone", "subject": "", "details": "boom", "where": "", "exit_code": 3,
}}  # fmt: skip
SKIPPED = BLOCKED | {"id": "late", "status": "skipped", "blocked_by": None}

STEPS = (GOOD, FAILED, ERROR, BLOCKED, WAIVED, DEFERRED, MUST, NOT_HERE, NAN)
BAD = report(*STEPS, exit_code=3, deliver=[s["id"] for s in STEPS if s["id"] not in ("onnx", "int8")])
"""One step of each outcome; `onnx` and `int8` are on the way to the others."""

NASTY = "a\x1b[31m red\x07\x00</script><img src=x onerror=alert(1)>&\"'\ud800\uffff\u202e|`]]>"
"""A name that steers terminals, breaks XML and means something in HTML."""


def spoilt(data: Any) -> Any:
    """The report with every free text in it followed by `NASTY`; keys, ids and words with a meaning stay."""
    free = (
        "what",
        "hint",
        "details",
        "where",
        "text",
        "reason",
        "waived",
        "provider",
        "output",
        "path",
        "replay",
        "name",
    )
    if isinstance(data, dict):
        return {k: f"{v}{NASTY}" if k in free and isinstance(v, str) else spoilt(v) for k, v in data.items()}
    return [spoilt(value) for value in data] if isinstance(data, list) else data
