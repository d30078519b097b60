from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit.reports import bounds, html, rows, spelling
from optkit.reports.markdown import escape, fenced, render, table
from optkit.reports.remedies import remedy


def measured(cosine: float, sqnr_db: float, problems: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """What a comparison gave for one output `y`."""
    outputs = {"y": {"cosine": {"worst": cosine, "worst_sample": 3, "mean": 0.999},
                     "sqnr_db": {"worst": sqnr_db, "worst_sample": 3},
                     "top1_agreement": {"value": 0.97, "disagreeing": 3, "total": 100, "worst_sample": 3}}}  # fmt: skip
    return {"samples": 100, "problems": problems or [], "notes": [], "outputs": outputs}


def verdict(held: bool, value: float = 0.9) -> dict[str, Any]:
    return {"bound": "cosine >= 0.99", "reason": "", "stated_by": "int8", "output": "y", "held": held,
            "measured": value, "worst_sample": 3, "text": f"y: cosine {value} at sample 3, needs >= 0.99"}  # fmt: skip


def case(name: str, kind: str, held: bool, source: dict[str, Any], parent: dict[str, Any] | None = None,
         verdicts: list[dict[str, Any]] | None = None) -> dict[str, Any]:  # fmt: skip
    judged = [verdict(held, source["outputs"]["y"]["cosine"]["worst"])] if verdicts is None else verdicts
    made = {"name": name, "kind": kind, "sizes": {}, "samples": 100, "source": source, "held": held, "verdicts": judged}
    return made | ({"parent": parent} if parent else {})


def step(
    step_id: str, parent: str, status: str, cases: list[dict[str, Any]] | None = None, **more: Any
) -> dict[str, Any]:
    check = {"against": "source", "data": "judge", "precision": "float32", "lossy": False, "waived": None,
             "provider": "CPU f32", "held": status == "passed", "cases": cases}  # fmt: skip
    return {
        "id": step_id, "pass": "onnx.quantize", "options": {}, "parent": parent, "implied": False,
        "fidelity": "rounding", "target": "onnx", "on_target": False, "data": None, "status": status,
        "seconds": {"run": 1.0, "check": 0.5}, "cached": {"run": False, "check": False}, "where": "recipe.yaml:9:5",
        "notes": {}, "error": None, "blocked_by": None,
        "artifact": {"size_bytes": 3_400_000}, "check": check if cases is not None else None, "replay": None, **more,
    }  # fmt: skip


def report(*steps: dict[str, Any], exit_code: int = 1, deliver: list[str] | None = None) -> dict[str, Any]:
    """A report's JSON around these steps; all of them are delivered unless named otherwise."""
    made = {s["id"]: s for s in steps}
    ids = list(made) if deliver is None else deliver
    paths = {i: f"build/net/{i}" if made[i]["status"] in ("passed", "waived") else None for i in ids}
    return {
        "schema": 1, "optkit": "0.1.0", "name": "net", "recipe": {"path": "recipe.yaml", "digest": "ab"},
        "started": "2026-11-23T07:00:00+00:00", "seconds": 12.34, "exit_code": exit_code,
        "environment": {"python": "3.11.7", "cores": 2, "tools": {"onnx": "1.23.2"}},
        "source": {"format": "torch"}, "data": {"judge": {"samples": 100, "synthetic": False, "digest": "cd"}},
        "steps": list(steps),
        "deliver": [{"step": i, "status": made[i]["status"], "format": "onnx", "path": paths[i],
                     "size_bytes": 3_400_000 if paths[i] else None} for i in ids],
    }  # fmt: skip


GOOD = step("onnx", "source", "passed", [case("samples", "samples", True, measured(0.99999, 120.5))])
FAILED = step("int8", "onnx", "failed", [
    case("samples", "samples", False, measured(0.9, 20.5), measured(0.9, 20.6)),
    case("batch=1", "dims", False, measured(0.95, 21)),
    case("zeros", "edge", True, measured(1.0, 300), verdicts=[]),
], fidelity="lossy")  # fmt: skip
ERROR = step("ov", "onnx", "error", None, artifact=None, replay="build/net/logs/run-ov/step.json", error={
    "class": "StepError", "what": "no kernel for | and `x`", "hint": "another opset", "where": "recipe.yaml:12:5",
    "details": "Traceback\n```\nboom <b>", "phase": "run"})  # fmt: skip
BLOCKED = step("trt", "int8", "blocked", None, artifact=None, blocked_by="int8", seconds={"run": 0.0, "check": 0.0})
WAIVED = step("w8", "onnx", "waived", [], fidelity="lossy")
WAIVED["check"]["waived"] = "measured by hand on the board"
DEFERRED = step("engine", "onnx", "deferred", None, on_target=True)


def test_all_held() -> None:
    text = render(report(GOOD, exit_code=0))
    assert text.startswith("# net: the delivery holds\n")
    first_screen = text.split("## Steps")[0]
    delivery = (
        "| **onnx** | onnx | 3.4 MB | passed | cosine 0.99999, 120.5 dB, sample 3 | cosine &gt;= 0.99: under 1 % used"
    )
    assert f"{delivery} | - | build/net/onnx |" in first_screen
    assert "data: judge (100 samples); exit code 0; 12.3 s; optkit 0.1.0; 2026-11-23 07:00:00 UTC." in first_screen
    assert "| onnx | onnx.quantize | source | rounding | passed | 120.5 dB | - | 1.50 s |" in text
    row = "| y | cosine &gt;= 0.99 | cosine 0.99999 | samples, sample 3 | under 1 % | 1 of 1 cases | stated by int8 |"
    assert row in text
    assert "## What went wrong" not in text
    assert "optkit convert recipe.yaml\noptkit verify build/net/onnx\n" in text
    assert "| tools onnx | 1.23.2 |" in text


def test_a_failed_check_says_why_and_what_the_step_itself_cost() -> None:
    text = render(report(GOOD, FAILED))
    assert text.startswith("# net: 1 of 2 deliveries hold; failed: int8\n")
    assert "### int8: failed" in text
    assert "- samples: y: cosine 0.9 at sample 3, needs &gt;= 0.99; also at batch=1" in text
    assert "This step cost 100.0 dB: its parent onnx has 120.5 dB." in text
    assert "Try: other options (optkit passes onnx.quantize)" in text
    row = "| y | cosine &gt;= 0.99 | cosine 0.9000 | samples, sample 3 | 10 times | **0 of 2 cases** | stated by int8 |"
    assert row in text
    assert "| - | finite, of the right shapes | - | zeros | - | 1 of 1 cases |" in text
    delivery = (
        "| **int8** | onnx | 3.4 MB | **failed** | cosine 0.9000, 20.5 dB, sample 3 | cosine &gt;= 0.99: 10 times over"
    )
    assert f"{delivery} | 100.0 dB | - |" in text
    assert text.index("## What went wrong") < text.index("## Steps")
    assert "cosine 0.9000, 20.6 dB, top1_agreement 97.00%" in text  # against its parent


def test_a_problem_that_needs_no_bound_is_told() -> None:
    finding = {"kind": "nan", "output": "y", "sample": 2, "text": "1 NaN that the reference does not have"}
    bad = step(
        "onnx", "source", "failed", [case("samples", "samples", False, measured(0.9, 20, [finding]), verdicts=[])]
    )
    text = render(report(bad))
    assert "- samples: y: 1 NaN that the reference does not have" in text
    assert "| y | - | 1 NaN that the reference does not have | samples | - | **no** |" in text


def test_a_budget_that_the_check_does_not_bear_out() -> None:
    kept = {**FAILED, "notes": {"budget": {"bounds": ["cosine >= 0.99"], "trials": 1, "samples": 9, "ranking": [],
                                           "reached": "y cosine 0.992"}}}  # fmt: skip
    assert "Try: a budget that is tighter than the check: cosine &gt;= 0.99 holds on the data" in render(report(kept))


def test_what_fails_nothing_is_still_told() -> None:
    found = measured(0.995, 30)
    found["notes"] = [{"kind": "labels", "output": "y", "sample": None, "text": "the label 9 is none (first of 4)"}]
    good = step("onnx", "source", "passed", [case(name, "samples", True, found) for name in ("samples", "batch=1")])
    said = "Noted, and no failure: y: the label 9 is none (samples, and 1 more)"
    assert said in render(report(good))
    assert said in html.render(report(good))


def test_an_error_has_its_remedy_its_details_and_how_to_repeat_it() -> None:
    text = render(report(GOOD, ERROR))
    assert "### ov: error\n\nno kernel for \\| and \\`x\\`\n\nAt recipe.yaml:12:5.\n\nTry: another opset\n" in text
    assert "````\nTraceback\n```\nboom <b>\n````" in text  # a fence longer than any inside it
    assert "optkit replay build/net/logs/run-ov/step.json" in text


def test_blocked_waived_and_deferred_are_never_passed() -> None:
    text = render(report(GOOD, FAILED, BLOCKED, WAIVED, DEFERRED))
    assert "1 of 5 deliveries hold; failed: int8, blocked: trt, waived: w8, deferred: engine" in text
    assert "Not run: it waits for **int8**, which did not succeed." in text
    assert "| trt | onnx.quantize | int8 | rounding | **blocked** | - | - | - |" in text
    assert "## Waived checks\n\n- **w8**: measured by hand on the board" in text
    assert "## Deferred checks\n\n- **engine**: meant to run on the target; `optkit verify` gives the verdict." in text


def test_an_interrupted_run_says_so() -> None:
    assert render(report(GOOD, exit_code=130)).startswith("# net: interrupted\n")


def test_a_run_without_a_recipe_file_still_says_how_to_repeat_it() -> None:
    data = report(GOOD, exit_code=0)
    data["recipe"]["path"] = None
    assert "# made without a recipe file" in render(data)
    data["recipe"]["path"] = "my recipe.yaml"
    assert "optkit convert 'my recipe.yaml'" in render(data)


def test_it_is_a_pure_function_of_the_json() -> None:
    data = report(GOOD, FAILED, ERROR, BLOCKED, WAIVED, DEFERRED)
    before = copy.deepcopy(data)
    assert render(data) == render(json.loads(json.dumps(data)))
    assert data == before


@pytest.mark.parametrize(
    "name", ["a|b", "`x`", "<script>alert(1)</script>", "a\nb", "[x](http://e)", "*a* _b_", "x\x1b[2J"]
)
def test_hostile_names_stay_text(name: str) -> None:
    data = report(copy.deepcopy(GOOD), exit_code=0)
    data["name"] = name
    data["steps"][0]["id"] = data["deliver"][0]["step"] = name
    data["steps"][0]["check"]["cases"][0]["source"]["outputs"] = {name: measured(1, 100)["outputs"]["y"]}
    text = render(data)
    assert "<script>" not in text
    assert "\x1b" not in text
    block: list[str] = []
    for line in text.splitlines():  # every table keeps its number of columns
        if line.startswith("| "):
            block.append(re.sub(r"\\\|", "", line))
            assert block[0].count("|") == block[-1].count("|")
        else:
            block = []


@given(st.text())
def test_escaped_text_is_one_line_without_markup(text: str) -> None:
    shown = escape(text)
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)[|`*\[\]~$]", shown.replace("\\\\", ""))
    assert "<" not in shown
    assert ">" not in shown


def test_escape_leaves_names_readable() -> None:
    assert escape("top1_agreement >= 0.99") == "top1_agreement &gt;= 0.99"
    assert escape("_x_ a_b") == r"\_x\_ a_b"


@given(st.text(alphabet="`ab\n"))
def test_a_fence_holds_any_text(text: str) -> None:
    first, *inside, last = fenced(text).split("\n")
    assert first == last
    assert not any(line.strip().startswith(first) for line in inside)


def test_a_table() -> None:
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_the_blame() -> None:
    def blame(mine: float, before: float, parent: float | None = None) -> str:
        one = step("a", "source", "passed", [case("samples", "samples", True, measured(1, before))])
        against = measured(1, parent) if parent is not None else None
        two = step("b", "a", "passed", [case("samples", "samples", True, measured(1, mine), against)])
        return rows.cost(two, report(one, two))

    assert blame(30, 120) == "this step cost 90.0 dB: its parent a has 120.0 dB"
    assert blame(120, 120.2) == "this step cost nothing: its parent a has 120.2 dB too"
    assert blame(120, 120, 300) == "equal to its parent a to the last bit"
    assert blame(30, 300) == "this step lost all of it: its parent a equals the source to the last bit"
    assert rows.cost(GOOD, report(GOOD)) == ""  # its parent is the source


def test_random_data_and_accuracy_are_told_on_the_first_screen() -> None:
    data = copy.deepcopy(report(GOOD, exit_code=0))
    data["data"]["judge"]["synthetic"] = True
    outputs = data["steps"][0]["check"]["cases"][0]["source"]["outputs"]
    outputs["y"]["accuracy"] = {"value": 0.98, "reference": 0.99, "candidate": 0.98, "total": 100}
    first_screen = render(data).split("## Steps")[0]
    assert "**Judged on random data:" in first_screen
    assert "| 98.00% (source 99.00%) |" in first_screen
    data["data"] = {"fit": {"samples": 3, "synthetic": True}}
    data["steps"][0]["data"] = "fit"
    assert "**Fitted on random data: onnx." in render(data)


def test_the_nearest_bound_is_the_one_that_is_used_up_most() -> None:
    def judged(bound: str, value: float | None, held: bool = True) -> dict[str, Any]:
        return {**verdict(held), "bound": bound, "measured": value, "worst_sample": None}

    source = measured(0.995, 40)
    one = case("samples", "samples", True, source, verdicts=[judged("cosine >= 0.98", 0.995),
                                                             judged("accuracy_drop <= 1%", -0.01)])  # fmt: skip
    two = case("batch=1", "dims", True, source, verdicts=[judged("y.sqnr_db >= 30", 31)])
    found = bounds.nearest(step("a", "source", "passed", [one, two]))
    assert found is not None
    assert (found.case, found.bound, bounds.margin(found)) == ("batch=1", "y.sqnr_db >= 30", "89 % used")
    short = case("samples", "samples", False, source, verdicts=[judged("sqnr_db >= 90", 35.8, held=False)])
    assert bounds.margin(bounds.nearest(step("a", "source", "failed", [short]))) == "54.2 dB short"
    lost = case("zeros", "edge", False, source, verdicts=[judged("rel_l2 <= 0.1", None, held=False)])
    found = bounds.nearest(step("a", "source", "failed", [one, two, lost]))
    assert found is not None
    assert (found.case, found.used, bounds.margin(found)) == ("zeros", None, "-")
    assert bounds.nearest(step("a", "source", "waived", [])) is None


def test_a_share_is_never_rounded_over_its_bound() -> None:
    told = [(0, True), (0.004, True), (0.999, True), (1.0, True), (1.0001, False), (12.3, False), (1e9, False)]
    assert [spelling.share(part, held) for part, held in told] == [
        "0 %", "under 1 %", "99 %", "100 %", "101 %", "12 times", "over 999 times"]  # fmt: skip
    assert spelling.share(None) == "-"


def test_metrics_are_spelt_for_people() -> None:
    assert [spelling.cosine(v) for v in (1.0, 0.9999983, 0.99988, 0.9995, 0.999, 0.97331, -1.0)] == [
        "1", "0.9999983", "0.99988", "0.9995", "0.9990", "0.9733", "-1.0000"]  # fmt: skip
    assert spelling.spelt("sqnr_db", 300) == "equal to the last bit"
    assert spelling.spelt("sqnr_db", 34.21) == "34.2 dB"
    assert spelling.spelt("cosine", 0.99998) == "cosine 0.99998"
    assert spelling.spelt("cosine", 0.98) == "cosine 0.9800"
    assert spelling.spelt("mismatch", 0.0123) == "mismatch 1.23%"
    assert spelling.spelt("rel_l2", 1.234e-5) == "rel_l2 1.23e-05"


def test_the_worst_of_several_outputs_is_shown() -> None:
    one = {"cosine": {"worst": 0.99}, "sqnr_db": {"worst": 20}}
    two = {"cosine": {"worst": 0.9}, "sqnr_db": {"worst": 30}}
    result = {"outputs": {"a": one, "b": two, "c": {"mismatch": {"worst": 0.5}}}}
    assert rows.worst(result) == {"cosine": 0.9, "sqnr_db": 20, "mismatch": 0.5}


def test_a_pass_that_can_look_for_settings_is_told_to() -> None:
    wrong = {**FAILED, "options": {"tune": False, "budget": []}, "data": "fit"}
    wish = 'with: {budget: ["cosine >= 0.99"], tune: true};'
    assert remedy(wrong).startswith(f"let it look for settings that hold it, {wish}")
    assert "with data: to fit on" in remedy({**wrong, "data": None})
    budgeted = {**wrong, "options": {"tune": False, "budget": ["cosine >= 0.99"]}}
    assert "hold it, with: {tune: true}" in remedy(budgeted)
    assert "look for settings" not in remedy({**wrong, "options": {"tune": True, "budget": ["cosine >= 0.99"]}})
