"""What a run leaves in its output folder: deliveries, and what becomes of those of earlier runs."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from toy_kit import GRAPH, HEAD, LEAVES, cached, convert, folder, statuses, workers_started

import optkit
from optkit.artifact import Artifact, digest_file, digest_of
from optkit.errors import SourceError, UserError
from optkit.events import Event, StepFinished
from optkit.report import Report
from optkit.running import report_making


@pytest.fixture
def base(tmp_path: Path, toy_plugin: Path) -> Path:
    return folder(tmp_path / "base")


def test_a_delivery_is_whole(base: Path) -> None:
    convert(base, GRAPH)
    place = base / "out/pack"
    assert sorted(p.name for p in place.iterdir()) == ["model.toypack", "optkit.json", "test-vectors.npz"]
    record = json.loads((place / "optkit.json").read_text(encoding="utf-8"))
    assert record["format"] == "toypack"
    assert record["signature"]["inputs"][0]["shape"] == ["batch", 3]
    assert [p["pass"] for p in record["provenance"]["passes"]] == ["toy.copy", "toy.to_toybin", "toybin.to_toypack"]
    assert record["status"] == "passed"
    assert record["check"]["held"] is True
    assert set(record["files"]) == {"model.toypack", "test-vectors.npz"}
    for name, was in record["files"].items():
        assert digest_file(place / name) == was["sha256"]
    with np.load(place / "test-vectors.npz") as vectors:
        assert vectors["0/input/x"].shape == (1, 3)
        assert vectors["0/output/y"].shape == (1, 4)
    with optkit.open_artifact(place) as opened:
        assert opened(x=np.zeros((2, 3), np.float32))["y"].shape == (2, 4)


def test_a_delivery_can_be_proven_again(base: Path) -> None:
    convert(base, GRAPH)
    for step in LEAVES:
        told = optkit.verify(base / "out" / step)
        assert told["held"], told
        assert told["problems"] == []
        assert [c["name"][:7] for c in told["cases"]] == ["against", "against"]


def tamper(path: Path) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    data["weights"] = (np.array(data["weights"]) + 0.1).tolist()
    path.write_text(json.dumps(data), encoding="utf-8")


def test_a_delivery_that_was_tampered_with_is_not_held(base: Path) -> None:
    convert(base, GRAPH)
    place = base / "out/half"
    tamper(place / "model.toy")
    told = optkit.verify(place)
    assert not told["held"]
    assert "model.toy is not the file that was delivered" in told["problems"][0]
    record = json.loads((place / "optkit.json").read_text(encoding="utf-8"))
    del record["sha256"]
    record["files"]["model.toy"]["sha256"] = digest_file(place / "model.toy")  # and the record with it
    (place / "optkit.json").write_text(json.dumps({**record, "sha256": digest_of(record)}), encoding="utf-8")
    told = optkit.verify(place)
    assert not told["held"], "the test vectors tell"
    assert not any(c["held"] for c in told["cases"])
    (place / "model.toy").unlink()
    assert optkit.verify(place)["problems"] == ["model.toy is missing"]


def test_an_old_delivery_goes_when_its_step_fails(base: Path) -> None:
    assert convert(base, GRAPH).ok
    assert (base / "out/round/model.toy").exists()
    report = convert(base, GRAPH.replace("0.999", "0.9999999999"))
    assert not (base / "out/round").exists()
    assert (base / "out/half/model.toy").exists()
    assert {d["step"]: d["path"] is not None for d in report.data["deliver"]}["round"] is False


def test_a_delivery_that_was_changed_is_made_anew(base: Path) -> None:
    convert(base, GRAPH)
    tamper(base / "out/half/model.toy")
    convert(base, GRAPH)
    assert workers_started(base) == 0
    assert optkit.verify(base / "out/half")["held"]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_in_the_way_is_told_before_anything_runs(kind: str, base: Path) -> None:
    place = base / "out/half"
    (base / "out").mkdir()
    if kind == "file":
        place.write_text("mine", encoding="utf-8")
    else:
        (base / "mine").mkdir()
        (base / "mine/thesis.txt").write_text("mine", encoding="utf-8")
        place.symlink_to(base / "mine") if kind == "link" else (base / "mine").rename(place)
    with pytest.raises(UserError, match="is in the way") as caught:
        convert(base, GRAPH)
    assert "--out DIR" in caught.value.hint
    assert workers_started(base) == 0
    kept = place if kind == "file" else place / "thesis.txt"
    assert kept.read_text(encoding="utf-8") == "mine"


def test_an_empty_folder_is_in_nobodys_way(base: Path) -> None:
    (base / "out/half").mkdir(parents=True)
    assert convert(base, GRAPH).ok


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/optkit"])
def test_an_output_folder_that_cannot_be_written_to(place: str, base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be written to") as caught:
        optkit.convert(base_recipe(base), out=tmp_path / place, cache=base / "cache")
    assert "--out DIR" in caught.value.hint


def base_recipe(base: Path, steps: str = GRAPH) -> Path:
    path = base / "recipe.yaml"
    path.write_text(HEAD + steps, encoding="utf-8")
    return path


def test_the_report_of_an_earlier_run_is_not_taken_for_this_ones(base: Path) -> None:
    convert(base, GRAPH)
    (base / "out/report.md").write_text("old", encoding="utf-8")
    (base / "m.toy").write_text("{", encoding="utf-8")
    with pytest.raises(SourceError):
        convert(base, GRAPH)
    assert not (base / "out/report.json").exists()
    assert not (base / "out/report.md").exists()
    told = ElementTree.parse(base / "out/report.junit.xml").getroot()
    assert told.attrib["errors"] == "1"
    error = told.find(".//error")
    assert error is not None
    assert error.attrib["type"] == "SourceError"
    assert "m.toy" in error.attrib["message"]


def test_two_runs_do_not_share_an_output_folder(base: Path) -> None:
    second: list[BaseException] = []

    def run_too(event: Event) -> None:
        if isinstance(event, StepFinished) and not second:
            thread = threading.Thread(target=try_it)
            thread.start()
            thread.join()

    def try_it() -> None:
        try:
            convert(base, GRAPH)
        except BaseException as error:
            second.append(error)

    assert convert(base, GRAPH, listen=run_too).ok
    assert isinstance(second[0], UserError)
    assert "another optkit run is writing to" in second[0].what
    assert convert(base, GRAPH).ok


def test_a_run_that_is_stopped_while_it_delivers_tells_how_far_it_got(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = report_making.deliver

    def pressed(artifact: Artifact, folder: Path, **more: Any) -> None:
        if folder.name == "round":
            os.kill(os.getpid(), signal.SIGINT)
        whole(artifact, folder, **more)

    monkeypatch.setattr(report_making, "deliver", pressed)
    report = convert(base, GRAPH)
    assert (report.exit_code, report.interrupted) == (130, True)
    assert set(statuses(report).values()) == {"passed"}
    assert [row["step"] for row in report.data["deliver"]] == ["half"]
    assert Report.read(base / "out/report.json").data == report.data
    assert (report.path("half") / "optkit.json").exists()
    assert not (base / "out/round").exists()
    monkeypatch.undo()
    again = convert(base, GRAPH)
    assert again.ok
    assert all(cached(again)["round"])


def test_what_a_killed_run_left_beside_the_deliveries_is_removed(base: Path) -> None:
    (base / "out/.half.123.tmp").mkdir(parents=True)
    (base / "out/.mine").mkdir()
    convert(base, GRAPH)
    assert not (base / "out/.half.123.tmp").exists()
    assert (base / "out/.mine").exists()
