"""Gates over a whole run. Toy models sleep as long as they say."""

from __future__ import annotations

import io
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from toy_kit import HEAD, convert, folder, model, statuses

from optkit.cli.summary import gate_lines, wrongs
from optkit.events import Event, StepStarted
from optkit.report import Report
from optkit.reports import junit
from optkit.reports.markdown import render
from optkit.reports.rows import broken, gates

TIMED = HEAD.replace("speed: false\n", "").replace("judge.npz}", "judge.npz, label: label}")
STEPS = '  - {{id: r, use: toy.round, data: fit, check: ["cosine >= 0.99"], gate: {step}, with: {{milliseconds: 1}}}}\n'


@pytest.fixture
def base(tmp_path: Path, toy_plugin: Path) -> Path:
    base = folder(tmp_path / "base")
    weights = np.asarray(json.loads(model(base, milliseconds=4).read_text())["weights"])
    x = np.load(base / "judge.npz")["x"]
    np.savez(base / "judge.npz", x=x, label=(x @ weights.T).argmax(1))
    return base


def gated(base: Path, overall: str = "[]", step: str = "[]", more: str = "", **kwargs: object) -> Report:
    head = TIMED.replace("steps:\n", f"metric: accuracy\ngate: {overall}\nsteps:\n")
    return convert(base, STEPS.format(step=step) + more, head=head, **kwargs)  # type: ignore[arg-type]


def test_gates_that_hold_are_lines_of_the_report(base: Path) -> None:
    overall = '["speedup >= 2", "latency_p90 <= 100 ms", "size <= 200%", "convert_seconds <= 100"]'
    report = gated(base, overall, '["accuracy_drop <= 50%", "size <= 1 kB"]')
    assert (report.exit_code, statuses(report)) == (0, {"r": "passed"})
    step = report.step("r")
    assert [(g["gate"], g["status"], g["scope"]) for g in step["gates"]] == [
        ("accuracy_drop <= 50%", "held", "step"), ("size <= 1 kB", "held", "step"), ("speedup >= 2", "held", "recipe"),
        ("latency_p90 <= 100 ms", "held", "recipe"), ("size <= 200%", "held", "recipe"),
        ("convert_seconds <= 100", "held", "recipe"),
    ]  # fmt: skip
    assert 2 < step["source_speed"]["ratio"]["value"] < 4.5
    assert step["source_speed"] == step["speed"], "its parent is the source: one race serves both"
    text = render(report.data)
    assert "## Gates\n" in text
    assert all(gate["gate"].replace("<", "&lt;").replace(">", "&gt;") in text for _, gate in gates(report.data))
    assert len(gate_lines(report.data, io.StringIO()).splitlines()) == 7


def test_a_gate_that_fails_fails_the_run_and_delivers_nothing(base: Path) -> None:
    report = gated(base, '["size <= 10 B"]', '["speedup >= 100", "accuracy >= 1%"]')
    assert (report.exit_code, statuses(report)) == (1, {"r": "failed"})
    assert [g["status"] for g in report.step("r")["gates"]] == ["failed", "held", "failed"]
    told = broken(report.step("r"))
    assert told[0].startswith("gate speedup >= 100: ")
    assert told[1].startswith("gate size <= 10 B: ")
    assert not (base / "out/r").exists()
    (said,) = wrongs(report.data, io.StringIO())
    assert "r is not what it must be" in said
    assert "or a gate that fits" in said
    assert "gate size &lt;= 10 B: " in render(report.data)


UNMEETABLE = (
    "size <= 1 B", "size <= 1%", "size <= 1% of parent", "speedup >= 100", "speedup >= 100 over parent",
    "latency_p50 <= 1 us", "latency_p90 <= 1 us", "latency_p99 <= 1 us", "throughput >= 1e9 samples/s",
    "peak_memory <= 1 kB", "peak_memory <= 1%", "peak_memory <= 1% of parent", "convert_seconds <= 1e-9",
    "accuracy >= 99.999%", "accuracy_drop_lower <= -99%",
)  # fmt: skip


def test_every_kind_of_gate_fails_when_it_should(base: Path) -> None:
    wrong = np.load(base / "judge.npz")
    np.savez(base / "judge.npz", x=wrong["x"], label=(wrong["label"] + 1) % 4)  # nothing answers right
    report = gated(base, "[]", json.dumps(UNMEETABLE))
    assert (report.exit_code, statuses(report)) == (1, {"r": "failed"})
    assert {g["gate"]: g["status"] for g in report.step("r")["gates"]} == dict.fromkeys(UNMEETABLE, "failed")
    assert all(g["measured"] is not None for g in report.step("r")["gates"]), "each was measured, and is beyond"
    assert {reason.partition(":")[0] for reason in broken(report.step("r"))} == {f"gate {g}" for g in UNMEETABLE}
    cases = ElementTree.fromstring(junit.render(report.data)).iter("testcase")
    failed = {case.get("name") for case in cases if case.find("failure") is not None}
    assert {f"gate {gate}" for gate in UNMEETABLE} <= failed


def test_a_delivery_is_raced_against_the_source_only_where_a_gate_asks(base: Path) -> None:
    more = "  - {id: c, from: r, use: toy.copy}\n  - {id: bin, from: c, to: toybin}\n"
    told: list[Event] = []
    report = gated(base, "[]", "[]", more, listen=told.append)
    assert report.exit_code == 0
    assert not [e for e in told if isinstance(e, StepStarted) and e.phase == "race"], "bin alone is delivered"
    report = gated(base, '["speedup >= 1.5"]', "[]", more, listen=told.append)
    assert [e.step for e in told if isinstance(e, StepStarted) and e.phase == "race"] == ["source"]
    step = report.step("bin")
    assert (step["speed"], step["source_speed"]["against"]) == (None, "source")
    assert [g["status"] for g in step["gates"]] == ["held"]
    again: list[Event] = []
    seconds = report.step("r")["made_seconds"]
    report = gated(base, '["speedup >= 1.5", "convert_seconds <= 0.000001"]', "[]", more, listen=again.append)
    assert not [e for e in again if isinstance(e, StepStarted)], "all of it was cached"
    (row,) = [g for g in report.step("bin")["gates"] if g["gate"].startswith("convert")]
    assert (row["status"], report.exit_code) == ("failed", 1), "the time it took when it ran counts"
    assert row["measured"] > seconds > 0


def test_a_step_that_did_not_hold_is_not_judged_and_a_race_that_breaks_fails_its_gate(base: Path) -> None:
    report = gated(base, '["size <= 1 MB"]', "[]", "", sets=["steps.r.check=[cosine >= 0.9999999999]"])
    assert [g["status"] for g in report.step("r")["gates"]] == ["not judged"]
    model(base, milliseconds=4, breaks_in_a_race=True)
    report = gated(base, '["latency_p50 <= 1 s"]', "[]")
    assert report.exit_code == 1
    assert "its speed could not be measured" in report.step("r")["gates"][0]["text"]
