"""Figures held against a baseline's: what counts as worse, and what noise and other machines explain."""

from __future__ import annotations

import copy
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from report_kit import spoilt
from test_junit import drawn
from test_markdown import case, measured, step
from test_markdown import report as plain_report

from optkit.artifact import digest_of
from optkit.comparing.baseline import make_baseline, read_baseline, write_baseline
from optkit.comparing.regression import compare
from optkit.errors import UserError
from optkit.report import BaselineResult
from optkit.reports.markdown import render
from optkit.spec.sections import BaselineSpec, Tolerance

Data = dict[str, Any]


def race(value: float, spread: float = 0.02, p50: float = 2.0, against: str = "source") -> Data:
    ratio = {"value": value, "low": value * (1 - spread), "high": value * (1 + spread), "rounds": 20}
    return {"against": against, "ratio": ratio, "verdict": "faster", "sizes": {"batch": 8}, "threads": 2,
            "provider": "CPU", "latency_ms": {"p50": p50, "p90": p50, "p99": p50},
            "parent_latency_ms": {"p50": 4.0, "p90": 4.0, "p99": 4.0}}  # fmt: skip


def score(value: float, interval: list[float], change: float = 0.0, spread: float = 0.004) -> Data:
    return {"value": value, "interval": interval, "source": 0.99, "source_interval": [0.97, 1.0], "change": change,
            "change_interval": [change - spread, change + spread], "better": "higher", "unit": "fraction",
            "method": "bootstrap", "confidence": 0.95}  # fmt: skip


def run(**change: Any) -> Data:
    """A run of one delivery; each change is a figure: sqnr, size, score, speed, or a part of the report."""
    shown = case("samples", "samples", True, measured(0.999, change.pop("sqnr", 40.0)))
    shown["scores"] = {"accuracy": change.pop("score", score(0.98, [0.96, 0.99], 0.01))}
    made = step("int8", "source", "passed", [shown], speed=change.pop("speed", race(2.0)))
    made["artifact"] = {"size_bytes": change.pop("size", 1000)}
    signature = {"inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 3]}],
                 "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 10]}]}  # fmt: skip
    source = {"format": "torch", "digest": "w", "signature": signature, "noise": {"samples": {"y": 1e-7}}}
    environment = {"optkit": "0.1.0", "python": "3.11.7", "machine": "x86_64", "cpu": "C", "cores": 2,
                   "tools": {"onnxruntime": "1.32.0"}}  # fmt: skip
    data = plain_report(made, exit_code=0) | {"source": source, "environment": environment}
    data["recipe"] = {"path": "recipe.yaml", "digest": "ab", "set": [], "only": []}
    return data | change


def held(now: Data, before: Data | None = None, **tolerance: Any) -> tuple[BaselineResult, dict[str, str]]:
    found = compare(make_baseline(before or run()), now, Tolerance(**tolerance))
    return found, {row["figure"]: row["status"] for row in found["rows"]}


def test_the_same_run_is_the_same() -> None:
    found, rows = held(run())
    assert (found["held"], found["changes"], found["problem"]) == (True, [], "")
    assert rows == {"size": "same", "sqnr_db": "same", "accuracy": "same", "speed over source": "same",
                    "latency p50 beside source": "same"}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "figure", "status"),
    [
        ({"size": 1009}, "size", "same"),
        ({"size": 1011}, "size", "worse"),
        ({"size": 900}, "size", "better"),
        ({"sqnr": 39.1}, "sqnr_db", "same"),
        ({"sqnr": 38.9}, "sqnr_db", "worse"),
        ({"sqnr": 41.1}, "sqnr_db", "better"),
        ({"score": score(0.976, [0.95, 0.98], 0.014)}, "accuracy", "same"),
        ({"score": score(0.96, [0.93, 0.98], 0.03)}, "accuracy", "worse"),
        ({"score": score(0.96, [0.93, 0.98], 0.03, spread=0.025)}, "accuracy", "same"),
        ({"score": score(0.985, [0.93, 0.99], 0.005)}, "accuracy", "better"),
        ({"score": {"problem": "no labels"}}, "accuracy", "missing"),
        ({"speed": race(1.85)}, "speed over source", "same"),
        ({"speed": race(1.7)}, "speed over source", "worse"),
        ({"speed": race(1.7, spread=0.2)}, "speed over source", "same"),
        ({"speed": race(2.4)}, "speed over source", "better"),
        ({"speed": None}, "speed over source", "missing"),
        ({"speed": race(2.0) | {"threads": 1}}, "speed over source", "missing"),
        ({"speed": race(2.0, p50=9.0)}, "latency p50 beside source", "same"),
    ],
)
def test_worse_is_what_neither_tolerance_nor_noise_explains(change: Data, figure: str, status: str) -> None:
    found, rows = held(run(**change))
    assert rows[figure] == status
    assert found["held"] == (status not in ("worse", "missing"))


def test_faithful_results_differ_by_rounding() -> None:
    """16 times the source's own rounding of 1e-7 are 116 dB: other kernels of the same arithmetic differ as much."""
    assert held(run(sqnr=114.0), run(sqnr=300.0))[1]["sqnr_db"] == "worse"
    assert held(run(sqnr=126.0), run(sqnr=300.0))[1]["sqnr_db"] == "same"
    assert held(run(sqnr=300.0), run(sqnr=126.0))[1]["sqnr_db"] == "same"


def test_milliseconds_are_judged_where_asked_and_on_the_same_hardware_alone() -> None:
    slower = run(speed=race(2.0, p50=2.3))
    assert held(slower, latency="10%")[1]["latency p50 beside source"] == "worse"
    assert held(slower, latency="20%")[0]["held"]
    elsewhere = run(environment=run()["environment"] | {"cpu": "D"})
    found, rows = held(elsewhere)
    assert (found["held"], found["changes"]) == (True, ["cpu C -> D"])
    assert "latency p50 beside source" not in rows
    assert rows["speed over source"] == "same"
    with pytest.raises(UserError, match="latency in ms cannot be compared: the baseline is from x86_64, C, 2 cores"):
        held(elsewhere, latency=0.1)


def test_what_changed_is_named() -> None:
    now = run()
    now["environment"]["tools"]["onnxruntime"] = "1.33.0"
    now["recipe"]["digest"], now["source"]["digest"] = "cd", "v"
    assert held(now)[0]["changes"] == [
        "the recipe changed", "the model, its weights or the code that builds it, changed",
        "onnxruntime 1.32.0 -> 1.33.0",
    ]  # fmt: skip


def test_what_does_not_mean_the_same_is_not_compared() -> None:
    other = copy.deepcopy(run())
    other["source"]["signature"]["inputs"][0]["shape"] = ["batch", 4]
    with pytest.raises(UserError, match=r"inputs differ: x: float32\[batch, 3\] in the baseline, x: .*4\] now") as told:
        held(other)
    assert told.value.code == "OPK-254"
    with pytest.raises(UserError, match=r"the data it is judged on differ \(judge\)"):
        held(run(data={"judge": {"samples": 100, "synthetic": False, "digest": "ef"}}))


def test_a_run_that_does_not_hold_is_no_baseline() -> None:
    wrong = run()
    wrong["steps"][0]["status"] = "failed"
    with pytest.raises(UserError, match=r"no baseline: not proven: int8 \(failed\)"):
        make_baseline(wrong)
    with pytest.raises(UserError, match="delivered nothing"):
        make_baseline(run(deliver=[]))
    with pytest.raises(UserError, match="it was interrupted"):  # after the first of its deliveries
        make_baseline(run(exit_code=130))


def test_a_delivery_that_is_gone_or_new_or_broken() -> None:
    two = run()
    two["steps"].append(copy.deepcopy(two["steps"][0]) | {"id": "ov"})
    two["deliver"].append(two["deliver"][0] | {"step": "ov"})
    found, _ = held(run(), two)
    assert [(r["step"], r["status"]) for r in found["rows"] if r["figure"] == "delivery"] == [("ov", "missing")]
    found, _ = held(two)
    assert [(r["step"], r["status"]) for r in found["rows"] if r["figure"] == "delivery"] == [("ov", "new")]
    assert found["held"]
    assert compare(make_baseline(two), run(), Tolerance(), ["int8"])["held"], "a run that was cut is compared in part"
    broken = run()
    broken["steps"][0]["status"] = "failed"
    assert [r["text"] for r in held(broken)[0]["rows"]] == ["now failed"]


def test_shares_are_written_either_way() -> None:
    assert BaselineSpec(file="b.json", size="2%", speed=0.2).tolerance == Tolerance(size=0.02, speed=0.2)
    assert BaselineSpec(file="b.json", size="2%", latency=None).stated == {"size"}


def test_a_damaged_file_is_told_from_one_of_another_schema(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    record = make_baseline(run())

    def code(text: str | None) -> str:
        if text is not None:
            path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError) as told:
            read_baseline(path)
        assert told.value.hint
        return told.value.code

    assert code(None) == "OPK-250"
    write_baseline(record, path)
    assert read_baseline(path) == json.loads(json.dumps(record))
    text = path.read_text(encoding="utf-8")
    assert code(text[: len(text) // 2]) == "OPK-252"
    assert code(text.replace("1000", "9000")) == "OPK-252"
    assert code("[]") == code("{}") == code(json.dumps({"kind": "x", "schema": 1})) == code("\x00") == "OPK-252"
    newer = {k: v for k, v in record.items() if k != "sha256"} | {"schema": 2}
    assert code(json.dumps(newer | {"sha256": digest_of(newer)})) == "OPK-253"
    with pytest.raises(UserError, match="cannot be written"):
        write_baseline(record, tmp_path / "baseline.json" / "inside")


def _write(path: Path, name: str) -> None:
    record = {k: v for k, v in make_baseline(run()).items() if k != "sha256"} | {"name": name * 20_000}
    for _ in range(40):
        write_baseline(record | {"sha256": digest_of(record)}, path)


def test_two_writers_leave_one_whole_baseline(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    writers = [multiprocessing.get_context("spawn").Process(target=_write, args=(path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            seen.add(read_baseline(path)["name"][0])
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen
    assert read_baseline(path)["name"][0] in "ab"
    assert [p.name for p in tmp_path.iterdir()] == ["baseline.json"]


@pytest.mark.parametrize("bad", [False, True])
def test_every_report_shows_it(bad: bool) -> None:
    data = run(size=2000 if bad else 1000)
    data["baseline"] = {**held(data)[0], "file": "baseline.json"}
    data["exit_code"] = int(bad)
    text = render(data)
    assert "## Baseline\n" in text
    assert ("| **int8** | size | **worse** | 1.0 kB -&gt; 2.0 kB (+100.0%) |" in text) == bad
    assert text.startswith("# net: the delivery holds" + (", but worse than the baseline" if bad else "\n"))
    failures = {f.attrib["message"] for f in drawn(data).iter("failure")}
    assert failures == ({"1.0 kB -> 2.0 kB (+100.0%)"} if bad else set())
    render(spoilt(data))
    drawn(spoilt(data))
