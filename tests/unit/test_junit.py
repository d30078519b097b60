"""JUnit XML: what Jenkins' schema allows, and that something fails exactly where the run's exit code is not 0."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest
from report_kit import (
    BAD,
    BENCHMARK,
    DEFERRED,
    GATED,
    GOOD,
    MUST,
    NAN,
    NOT_HERE,
    SKIPPED,
    UNMEASURED,
    WAIVED,
    spoilt,
)
from test_markdown import BLOCKED, ERROR, FAILED, report

from optkit.reports.junit import clean, render

# junit-10.xsd: element -> (attributes it must have, attributes it may have, elements it may hold)
_OUTCOME = (set(), {"type", "message"}, set())
_SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": ({"name", "tests", "failures", "errors"}, {"group", "time", "skipped", "timestamp", "hostname", "id"},
                  {"properties", "testcase", "system-out", "system-err"}),
    "testcase": ({"name"}, {"time", "classname", "group"}, {"skipped", "error", "failure", "system-out", "system-err"}),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, set(), set()),
    "failure": _OUTCOME, "error": _OUTCOME, "skipped": _OUTCOME,
    "system-out": (set(), set(), set()),
}  # fmt: skip


def drawn(data: dict[str, Any]) -> ElementTree.Element:
    """The document of a report, held against the schema and its own counts."""
    root = ElementTree.fromstring(render(data))
    assert root.tag == "testsuites"
    for element in root.iter():
        must, may, holds = _SCHEMA[element.tag]
        assert must <= set(element.attrib) <= must | may, element.attrib
        assert {inner.tag for inner in element} <= holds
        if "time" in element.attrib:
            assert re.fullmatch(r"\d+\.\d{3}", element.attrib["time"])
    for suite in (root, *root.iter("testsuite")):
        assert int(suite.attrib["tests"]) == len(list(suite.iter("testcase")))
        for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(suite.attrib.get(name, len(list(suite.iter(tag))))) == len(list(suite.iter(tag)))
    names = [(case.attrib["classname"], case.attrib["name"]) for case in root.iter("testcase")]
    assert len(names) == len(set(names))
    return root


def outcomes(data: dict[str, Any]) -> dict[str, str]:
    """Step and test case, to what became of it."""
    return {
        f"{case.attrib['classname'].removeprefix('net.')} {case.attrib['name']}": next(
            (inner.tag for inner in case if inner.tag != "system-out"), "passed"
        )
        for case in drawn(data).iter("testcase")
    }


def test_every_outcome_has_its_element() -> None:
    found = outcomes(BAD)
    assert found == {
        "onnx makes onnx by onnx.quantize": "passed",
        "onnx y: cosine >= 0.99": "passed",
        "int8 makes onnx by onnx.quantize": "passed",
        "int8 y: cosine >= 0.99": "failure",
        "int8 finite and of the right shapes": "passed",
        "ov makes onnx by onnx.quantize": "error",
        "trt makes onnx by onnx.quantize": "skipped",
        "w8 makes onnx by onnx.quantize": "passed",
        "w8 is checked": "passed",
        "engine makes onnx by onnx.quantize": "passed",
        "engine is checked": "skipped",
        "slower makes onnx by onnx.quantize": "passed",
        "slower y: cosine >= 0.99": "passed",
        "slower must be faster": "failure",
        "slower must be smaller": "passed",
        "board makes onnx by onnx.quantize": "passed",
        "board is checked": "failure",
        "nan makes onnx by onnx.quantize": "passed",
        "nan y: nan": "failure",
    }
    suites = [suite.attrib["name"] for suite in drawn(BAD)]
    assert suites == [
        *(f"net.{step}" for step in ("ov", "trt", "w8", "engine", "slower", "board", "nan")),
        "net (steps on the way)",
    ]


def test_each_gate_has_its_case() -> None:
    assert outcomes(report(GATED)) == {
        "gated makes onnx by onnx.quantize": "passed",
        "gated y: cosine >= 0.99": "passed",
        "gated gate size <= 100 kB": "failure",
        "gated gate speedup >= 1.5": "passed",
        "gated gate latency_p90 <= 5 ms": "skipped",
        "gated gate convert_seconds <= 60": "skipped",
    }
    failure = drawn(report(GATED)).find(".//failure")
    assert failure is not None
    assert failure.attrib == {"message": "138.3 kB", "type": "gate"}
    assert "or a gate that fits what is measured" in (failure.text or "")


def test_a_failure_says_what_where_and_one_thing_to_try() -> None:
    root = drawn(BAD)
    failure = root.find(".//testcase[@classname='net.int8']/failure")
    assert failure is not None
    assert failure.attrib["message"] == "samples: y: cosine 0.9 at sample 3, needs >= 0.99"
    text = failure.text or ""
    assert "batch=1: y: cosine 0.95" in text
    assert "this step cost 100.0 dB: its parent onnx has 120.5 dB" in text
    assert "At recipe.yaml:9:5" in text
    assert "Try: other options" in text
    error = root.find(".//error")
    assert error is not None
    assert error.attrib == {"message": "no kernel for | and `x`", "type": "StepError"}
    assert "optkit replay build/net/logs/run-ov/step.json" in (error.text or "")
    assert "boom <b>" in (error.text or "")
    blocked = root.find(".//testcase[@classname='net.trt']/skipped")
    assert blocked is not None
    assert blocked.attrib["message"] == "blocked by int8, which did not succeed"
    waived = root.find(".//testcase[@classname='net.w8'][@name='is checked']/system-out")
    assert waived is not None
    assert waived.text == "waived: measured by hand on the board"


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ((GOOD, WAIVED, DEFERRED), 0), ((GOOD, NOT_HERE), 1), ((GOOD, FAILED, BLOCKED), 1), ((ERROR,), 3),
        ((MUST,), 1), ((NAN,), 1), ((GATED,), 1), ((GOOD, SKIPPED), 130), ((), 1),
    ],
)  # fmt: skip
def test_something_fails_exactly_where_the_run_does(steps: tuple[dict[str, Any], ...], code: int) -> None:
    data = report(*steps, exit_code=code, deliver=[] if code == 130 else None)
    root = drawn(data)
    assert (int(root.attrib["failures"]) + int(root.attrib["errors"]) > 0) == (code != 0)


def test_a_benchmark_has_a_case_for_each_figure_and_its_error_fails() -> None:
    found = outcomes(report(GOOD, exit_code=0) | {"benchmark": BENCHMARK})
    assert found.keys() >= {"benchmark onnx, batch 8, 1 thread", "benchmark onnx, batch 1, 2 threads"}
    assert set(found.values()) == {"passed"}
    root = drawn(report(GOOD, exit_code=3) | {"benchmark": UNMEASURED})
    assert (root.attrib["failures"], root.attrib["errors"]) == ("0", "1")
    error = root.find(".//testcase[@classname='net.benchmark'][@name='is measured']/error")
    assert error is not None
    assert error.attrib == {"message": "source stopped while its speed was measured", "type": "StepCrashed"}
    assert error.text == "source stopped while its speed was measured\nTry: run it alone\nboom"


def test_seconds_are_the_steps_own_and_a_checks_are_shared_out() -> None:
    suite = drawn(report(FAILED))[0]
    assert suite.attrib["time"] == "1.500"
    assert [case.attrib["time"] for case in suite.iter("testcase")] == ["1.000", "0.250", "0.250"]


def test_names_cannot_break_the_document() -> None:
    root = drawn(spoilt(BAD))
    text = "".join(root.itertext()) + "".join(v for e in root.iter() for v in e.attrib.values())
    assert "a red" in text
    assert "</script><img src=x onerror=alert(1)>" in text
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", text)
    assert clean("\x1b[1;31mred\x1b[0m \x1b]8;;http://a\x07b\x00") == r"red b\x00"
    assert clean("a\r\nb\n") == "a b"
    assert clean("a\r\nb\n", lines=True) == "a\nb\n"
