from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
from test_markdown import BLOCKED, DEFERRED, ERROR, FAILED, GOOD, WAIVED, report

from optkit.cli.summary import budget_notes, deliveries_table, synthetic_note, verdict_line, wrongs


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_deliveries_at_a_glance() -> None:
    data = report(GOOD, FAILED, BLOCKED)
    assert verdict_line(data, io.StringIO()) == "net: 1 of 3 deliveries hold; failed: int8, blocked: trt (12.3 s)"
    assert deliveries_table(data, io.StringIO()).splitlines() == [
        "delivery  format  size    status   worst parity              nearest bound   time    folder",
        "onnx      onnx    3.4 MB  passed   cosine 0.99999, 120.5 dB  under 1 % used  1.50 s  build/net/onnx",
        "int8      onnx    3.4 MB  failed   cosine 0.9000, 20.5 dB    10 times over   1.50 s  -",
        "trt       onnx    -       blocked  -                         -               -       -",
    ]


def test_a_failed_check_an_error_and_what_they_block() -> None:
    failed, error, blocked = wrongs(report(GOOD, FAILED, ERROR, BLOCKED, WAIVED), io.StringIO())
    assert failed.splitlines() == [
        "int8 failed its check",
        "  at recipe.yaml:9:5",
        "  samples: y: cosine 0.9 at sample 3, needs >= 0.99; also at batch=1",
        "  this step cost 100.0 dB: its parent onnx has 120.5 dB",
        "  try: other options (optkit passes onnx.quantize), more or better data to fit on, or a looser bound",
        "  why: optkit explain OPK-101",
    ]
    assert error.splitlines() == [
        "ov failed in onnx.quantize",
        "  at recipe.yaml:12:5",
        "  no kernel for | and `x`",
        "  try: another opset",
        "  again, alone: optkit replay build/net/logs/run-ov/step.json",
    ]
    assert blocked == "blocked: trt, because int8 did not succeed"


def test_a_must_that_is_missed_by_a_model_that_is_right_is_no_matter_of_its_parity() -> None:
    missed = {**GOOD, "status": "failed", "must": [{"must": "faster", "held": False, "text": "no faster: 0.9 times"}]}
    (text,) = wrongs(report(missed), io.StringIO())
    assert text.startswith("onnx is not what it must be")
    assert "this step" not in text


def test_what_a_budget_kept_is_told() -> None:
    ranking = [{"group": "up", "operators": 2, "error": 0.4, "kept": True},
               {"group": "down", "operators": 1, "error": 0.01, "kept": False}]  # fmt: skip
    found = {"bounds": ["cosine >= 0.99"], "samples": 64, "trials": 5, "ranking": ranking}
    kept = {**GOOD, "data": "fit", "notes": {"budget": found}}
    assert list(budget_notes(report(kept))) == [
        "note: onnx keeps 1 of 2 groups in higher precision: cosine >= 0.99 held on 64 samples of fit"
    ]
    assert list(budget_notes(report({**GOOD, "notes": {"budget": {**found, "ranking": []}}}))) == []


def test_a_check_put_off_without_having_been_meant_to_is_told() -> None:
    unmeant = {**DEFERRED, "on_target": False}
    (text,) = wrongs(report(GOOD, unmeant), io.StringIO())
    assert "engine deferred" in text
    assert "try: on_target: true" in text
    assert list(wrongs(report(GOOD, DEFERRED), io.StringIO())) == []


def test_random_samples_are_called_so() -> None:
    data = copy.deepcopy(report(GOOD, FAILED))
    assert synthetic_note(data) == ""
    data["data"]["judge"]["synthetic"] = True
    assert synthetic_note(data).endswith("  try: real samples, with data: in the recipe")
    data["recipe"]["path"] = None
    assert synthetic_note(data).endswith("with --data FILE.npz")
    data["data"] = {"fit": {"samples": 3, "synthetic": True}}
    data["steps"][1]["data"] = "fit"
    assert synthetic_note(data) == "note: int8: fitted on random data; real samples give a better model"


def test_hostile_names_and_messages() -> None:
    data = copy.deepcopy(report(GOOD, ERROR))
    data["name"] = "a\x1b[2J"
    data["steps"][1]["error"]["what"] = "\x1b]0;title\x07 [red]"
    text = verdict_line(data, io.StringIO()) + "".join(wrongs(data, io.StringIO()))
    assert "\x1b" not in text
    assert "[red]" in text
