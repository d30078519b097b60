"""Gates: their grammar, what planning refuses of them, and how they are judged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from planning_kit import GOOD, fill, plan_of, problems_of

from optkit.parity.bounds import BoundError
from optkit.running.gating import Measured, judged
from optkit.running.racing import heats
from optkit.spec.gates import Gate, clashes, parse_gate, pattern
from optkit.spec.metricspec import NAME, bound_table

TABLE = bound_table(())


@pytest.mark.parametrize(
    ("text", "measure", "value", "relative", "unit"),
    [
        ("size <= 10 MB", "size", 10e6, "", "B"),
        ("size<=1.5KiB", "size", 1536, "", "B"),
        ("size <= 25 %", "size", 0.25, "source", "ratio"),
        ("size <= 50% of parent", "size", 0.5, "parent", "ratio"),
        ("speedup >= 2", "speedup", 2, "source", "ratio"),
        ("  speedup >=  1.5x over  parent ", "speedup", 1.5, "parent", "ratio"),
        ("latency_p90 <= 5 ms", "latency_p90", 5, "", "ms"),
        ("latency_p50 <= 250 us", "latency_p50", 0.25, "", "ms"),
        ("latency_p99 <= 1e-1 s", "latency_p99", 100, "", "ms"),
        ("throughput >= 500", "throughput", 500, "", "samples/s"),
        ("throughput >= 2e3 samples/s", "throughput", 2000, "", "samples/s"),
        ("peak_memory <= 300 MB", "peak_memory", 3e8, "", "B"),
        ("peak_memory <= 50% of parent", "peak_memory", 0.5, "parent", "ratio"),
        ("convert_seconds <= 60", "convert_seconds", 60, "", "s"),
    ],
)
def test_a_gate_is_read_into_its_base_unit(text: str, measure: str, value: float, relative: str, unit: str) -> None:
    gate = parse_gate(text, TABLE)
    assert (gate.measure, gate.relative, gate.unit) == (measure, relative, unit)
    assert gate.value == pytest.approx(value)
    assert gate.timed == measure.startswith(("speedup", "latency", "throughput", "peak_memory"))
    assert re.fullmatch(pattern([NAME]), text)


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("size 10 MB", "has no >= or <=", "size <= 10 MB"),
        ("sise <= 10 MB", "nothing called 'sise' can be measured", "did you mean 'size'?"),
        ("latency <= 5 ms", "nothing called 'latency'", "did you mean 'latency_p90'?"),
        ("memory <= 5 MB", "nothing called 'memory'", "did you mean 'peak_memory'?"),
        ("throughput >= 50 MB", "'MB' is no unit of throughput", "samples/s"),
        ("peak_memory <= 50", "peak_memory needs a unit", "GiB, %"),
        ("throughput >= 2 over source", "not relative to anything", "leave out"),
        ("cosine >= 0.9", "nothing called 'cosine'", "put it under check:"),
        ("logits.cosine >= 0.9", "nothing called", "put it under check:"),
        ("size >= 10 MB", "better when lower, so its gate has <=", "write size <= 10 MB"),
        ("speedup = 2", "better when higher, so its gate has >=", "write speedup >= 2"),
        ("size <= 10", "size needs a unit", "one of B, kB"),
        ("size <= 10 ms", "'ms' is no unit of size", "GiB, %"),
        ("latency_p90 <= 5", "latency_p90 needs a unit", "us, ms, s"),
        ("latency_p90 <= 50%", "'%' is no unit of latency_p90", "us, ms, s"),
        ("size <= many MB", "'many MB' is no amount", "size <= 10 MB"),
        ("size <= 10 MB of parent", "not relative to anything", "leave out"),
        ("speedup >= 2 over slim", "'slim' is not what it can be relative to", "source or parent"),
        ("speedup >= 0", "every model meets this", "speedup >= 2"),
        ("size <= -1 MB", "no model meets this", "size <= 10 MB"),
        ("accuracy_loss <= 1%", "nothing called", ""),
    ],
)
def test_what_is_no_gate_says_why(text: str, said: str, hint: str) -> None:
    with pytest.raises(BoundError, match=re.escape(said)) as error:
        parse_gate(text, TABLE)
    assert hint in error.value.hint


def test_two_gates_on_one_thing_are_found() -> None:
    gates = [parse_gate(t, TABLE) for t in ("size <= 1 MB", "size <= 5%", "speedup >= 2", "size <= 2 MB")]
    assert [(index, earlier.text) for index, earlier in clashes(gates)] == [(3, "size <= 1 MB")]


def gated(overall: str, step: str, text: str = GOOD) -> str:
    text = text.replace('check: ["cosine >= 0.99"]', f'check: ["cosine >= 0.99"], gate: {step}')
    return f"{text}gate: {overall}\n"


def test_a_plan_knows_the_gates_of_each_delivery(tmp_path: Path) -> None:
    plan = plan_of(gated('["size <= 25%", "latency_p90 <= 5 ms"]', '["speedup >= 2 over parent"]'), fill(tmp_path))
    found = {step.id: [(gate.text, scope) for gate, scope in plan.gates_of(step)] for step in plan.steps}
    assert found == {
        "onnx": [], "slim": [], "ov": [("size <= 25%", "recipe"), ("latency_p90 <= 5 ms", "recipe")],
        "int8": [("speedup >= 2 over parent", "step"), ("size <= 25%", "recipe"), ("latency_p90 <= 5 ms", "recipe")],
    }  # fmt: skip
    assert {against: [s.id for s in steps] for against, steps in heats(plan).items()} == {
        "slim": ["int8"], "source": ["int8", "ov"],
    }  # fmt: skip


def test_planning_refuses_what_cannot_be_meant(tmp_path: Path) -> None:
    base = fill(tmp_path)

    def said(text: str) -> list[str]:
        return [what for _, what, _ in problems_of(text, base)]

    assert said(gated('["size <= 1 MB", "size <= 2 MB"]', "[]")) == ["gate: 'size <= 2 MB' contradicts 'size <= 1 MB'"]
    assert said(gated('["size <= 1 MB"]', '["size <= 2 MB"]')) == [
        "step int8: 'size <= 2 MB' has no effect beside 'size <= 1 MB', which holds for all"
    ]
    assert plan_of(gated('["size <= 2 MB"]', '["size <= 1 MB"]'), base), "a stricter one has"
    assert said(gated('["speeedup >= 2"]', '["size <= 3"]')) == [
        "step int8: 'size <= 3': size needs a unit", "gate: 'speeedup >= 2': nothing called 'speeedup' can be measured"
    ]  # fmt: skip
    assert said(gated("size <= 1 MB", "[]")) == ["gate: should be a list of gates, got 'size <= 1 MB'"]
    assert "accuracy_drop is a bound on outputs" in problems_of(gated("[]", '["accuracy_drop <= 1%"]'), base)[0][2]
    bare = gated('["size <= 25%"]', "[]").replace("  weights: net.safetensors\n", "")
    assert said(bare)[0] == "'size <= 25%' of int8: the source has no weights on disk, so its size is not known"
    target = gated('["latency_p50 <= 1 ms"]', "[]").replace(
        "data: fit, check", "data: fit, with: {for: tensorrt}, check"
    )
    assert said(target) == [
        "'latency_p50 <= 1 ms' of int8: how fast it is cannot be seen here: onnx.quantize makes it for another runtime"
    ]
    labelled = GOOD.replace("judge: {npz: judge.npz}", "judge: {npz: judge.npz, label: label}") + "metric: accuracy\n"
    bounded = labelled.replace('"cosine >= 0.99"', '"accuracy_drop <= 1%"')
    assert said(bounded.replace("deliver: [int8, ov]", 'deliver: [int8]\ngate: ["accuracy_drop <= 2%"]')) == [
        "'accuracy_drop <= 2%' of int8: check: bounds it already, with accuracy_drop <= 0.01"
    ]
    waived = labelled.replace('check: ["cosine >= 0.99"]', "waive: measured by hand on the board")
    assert said(waived + 'gate: ["accuracy >= 90%"]\n') == [
        "'accuracy >= 90%' of int8: its check is waived, so no metric is measured"
    ]


SPEED = {"against": "source", "ratio": {"value": 2.1, "low": 1.9, "high": 2.3}, "sizes": {"batch": 8}, "threads": 2,
         "latency_ms": {"p50": 3.0, "p90": 4.0, "p99": 9.0}, "samples_per_second": 2500.0, "peak_bytes": 90_000_000,
         "parent_peak_bytes": 180_000_000}  # fmt: skip
KNOWN = Measured(2_000_000, 10_000_000, 4_000_000, 12.5, {"source": SPEED, "parent": None}, {})


def row(text: str, measured: Measured | None = KNOWN) -> tuple[str, float | None, str]:
    (found,) = judged([(parse_gate(text, TABLE), "step")], measured)
    assert json.loads(json.dumps(found)) == found
    return found["status"], found["measured"], found["text"]


def test_a_gate_is_held_against_what_was_measured() -> None:
    assert row("size <= 2 MB") == ("held", 2e6, "2 MB")
    assert row("size <= 1999 kB")[0] == "failed"
    assert row("size <= 20%") == ("held", 0.2, "20.0% of the source: 2 MB of 10 MB")
    assert row("size <= 49% of parent")[:2] == ("failed", 0.5)
    assert row("speedup >= 2") == (
        "held", 2.1, "2.10 times as fast as source (1.90 to 2.30), within the noise of its measurement"
    )  # fmt: skip
    assert row("speedup >= 2.5") == ("failed", 2.1, "2.10 times as fast as source (1.90 to 2.30)")
    assert row("latency_p90 <= 4 ms") == ("held", 4.0, "p90 4 ms, batch 8, 2 threads")
    assert row("latency_p99 <= 5 ms")[0] == "failed"
    assert row("throughput >= 2500") == ("held", 2500.0, "2500 samples/s, batch 8, 2 threads")
    assert row("throughput >= 2501")[0] == "failed"
    assert row("peak_memory <= 90 MB") == ("held", 9e7, "90 MB resident at most, batch 8, 2 threads")
    assert row("peak_memory <= 89 MB")[0] == "failed"
    assert row("peak_memory <= 40%")[:2] == ("failed", 0.5)
    assert row("peak_memory <= 50% of parent")[2] == "its memory was not measured, needs <= 50% of parent"
    assert row("convert_seconds <= 12")[:2] == ("failed", 12.5)


def test_what_was_not_measured_fails() -> None:
    assert row("speedup >= 1.1 over parent") == ("failed", None, "its speed was not measured, needs >= 1.1 over parent")
    unknown = Measured(1, None, None, None, {}, {}, untimed="its speed could not be measured: it crashed")
    assert row("size <= 20%", unknown)[2] == "the source's size is not known, needs <= 20%"
    assert row("latency_p50 <= 1 ms", unknown)[2].startswith("its speed could not be measured: it crashed")
    assert row("throughput >= 1", unknown)[0] == row("peak_memory <= 1 GB", unknown)[0] == "failed"
    assert row("convert_seconds <= 1", unknown)[0] == "failed"
    assert row("size <= 1 B", None) == ("not judged", None, "the step did not hold")
    away = Measured(1, None, None, 1.0, {}, {}, here=False)
    assert [row(t, away)[0] for t in ("size <= 2 B", "speedup >= 2")] == ["held", "deferred"]


def test_a_looser_gate_is_known() -> None:
    def gate(text: str) -> Gate:
        return parse_gate(text, TABLE)

    assert gate("size <= 2 MB").looser_than(gate("size <= 1 MB"))
    assert not gate("size <= 1 MB").looser_than(gate("size <= 2 MB"))
    assert gate("speedup >= 1").looser_than(gate("speedup >= 2"))
