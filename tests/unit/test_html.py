"""The HTML report's structure: whole, self-contained, every text escaped; and what its charts are drawn from."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest
from report_kit import (
    BAD,
    BASELINE,
    BENCHMARK,
    DEFERRED,
    GATED,
    GOOD,
    MUST,
    NASTY,
    NOT_HERE,
    UNMEASURED,
    WAIVED,
    report,
    spoilt,
)

from optkit.reports.html import render
from optkit.reports.html_charts import Point, front
from optkit.reports.html_graph import lineage
from optkit.reports.html_kit import anchor
from optkit.reports.markup import tag

_VOID = {"meta", "link", "br", "wbr"}


class Page(HTMLParser):
    """A page's elements, ids, links and visible text; fails on a tag that is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        """What a reader sees, and the titles of charts."""
        return " ".join(" ".join(self.words).split())

    def all(self, name: str) -> list[dict[str, str | None]]:
        """The attributes of every element of that name."""
        return [attributes for tag, attributes in self.elements if tag == name]


def drawn(data: dict[str, Any]) -> Page:
    """The page of a report: one id each, every link leads somewhere, nothing is loaded from outside."""
    text = render(data)
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in page.all("a"):
        assert (attributes["href"] or "").removeprefix("#") in ids
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert not {"src", "srcset", "data", "action"} & set(attributes)
    assert [attributes["href"] for attributes in page.all("link")] == ["data:,"]
    assert not re.search(r"@import|url\((?!#)", text)
    assert text == render(copy.deepcopy(data))
    return page


def test_the_verdict_and_every_delivery_are_there_in_words() -> None:
    page = drawn(BAD)
    assert page.text.startswith("net: 0 of 7 deliveries hold; error: ov")  # the page's title
    assert "✗ do not ship: exit code 3" in page.text
    assert "samples: y: cosine 0.9 at sample 3, needs >= 0.99" in page.text
    assert "This step cost 100.0 dB: its parent onnx has 120.5 dB." in page.text
    assert "Not run: it waits for int8 , which did not succeed." in page.text
    assert "Its check was waived: measured by hand on the board" in page.text
    assert "boom <b>" in page.text
    for word in ("✓ passed", "✗ failed", "! error", "⊘ blocked", "… deferred", "~ waived"):
        assert word in page.text


@pytest.mark.parametrize(
    ("steps", "code", "said"),
    [
        ((GOOD,), 0, "✓ every delivery holds"),
        ((GOOD, WAIVED, DEFERRED), 0, "… nothing failed; 1 waived, 1 deferred"),
        ((GOOD, NOT_HERE), 1, "✗ do not ship: exit code 1"),
    ],
)
def test_the_stamp_says_what_may_ship(steps: tuple[dict[str, Any], ...], code: int, said: str) -> None:
    assert said in drawn(report(*steps, exit_code=code)).text


def test_a_deferral_nobody_meant_is_among_what_went_wrong() -> None:
    text = drawn(report(GOOD, NOT_HERE, exit_code=1)).text
    assert "What went wrong" in text
    assert "Deferred and waived" not in text
    assert "Try: on_target: true" in text


def test_each_step_of_the_graph_leads_to_its_section() -> None:
    page = drawn(BAD)
    boxes = [a["href"] for (name, a), (after, _) in zip(page.elements, page.elements[1:], strict=False)
             if (name, after) == ("a", "title")]  # fmt: skip
    assert sorted(boxes) == sorted(f"#{anchor(step['id'])}" for step in BAD["steps"])
    assert [a["id"] for a in page.all("section")] == [anchor(step["id"]) for step in BAD["steps"]]


def test_gates_show_how_near_their_limit_they_are() -> None:
    text = drawn(report(GATED, exit_code=1)).text
    assert "size <= 100 kB ✗ failed 138% of the limit 138% 138.3 kB this step" in text
    assert "speedup >= 1.5 ✓ held 75% of the limit 75% 2.00 times as fast as source all deliveries" in text
    assert "latency_p90 <= 5 ms … deferred - its speed is measured on the target" in text


def test_a_run_beside_its_baseline() -> None:
    fell = drawn(report(GOOD, exit_code=1) | {"baseline": BASELINE}).text
    assert "Worse than b.json." in fell
    assert "✗ worse size 12 B, was 10 B" in fell
    assert "gone delivery ✗ missing it is not delivered any more" in fell
    assert "Changed since: the recipe changed" in fell
    held = drawn(report(GOOD, exit_code=0) | {"baseline": BASELINE | {"held": True, "rows": BASELINE["rows"][2:]}}).text
    assert "No worse than b.json. " in held
    assert "What went wrong" not in held
    other = BASELINE | {"problem": "b.json is of another recipe", "rows": []}
    assert "✗ failed b.json is of another recipe Try:" in drawn(report(GOOD) | {"baseline": other}).text


def test_a_benchmark_is_drawn_with_its_intervals_and_what_settings_did() -> None:
    text = drawn(report(GOOD, WAIVED, exit_code=0) | {"benchmark": BENCHMARK}).text
    assert "batch 8, 1 thread Artifact Latency" in text
    assert "median 2 ms, 90th percentile 2.5 ms, 99th percentile 9 ms 2 / 2.5 / 9 ms 3810" in text
    assert "2.30x [2.07, 2.53] ✓ faster 0.30 s 90.0 MB 3.4 MB - " in text
    assert "0.40x [0.36, 0.44] ✗ slower 0.30 s - 3.4 MB" in text
    assert "onnx with HINT_ OF=bf16 CPU (onnxruntime)" in text
    assert "≠ others cosine 0.9999, 41.0 dB, beside onnx without" in text
    assert "batch 1, 2 threads Artifact Latency" in text
    assert "1.00x [0.90, 1.10] = the same" in text
    assert "trt: not measured, it did not hold or runs elsewhere" in text
    assert "fastest 3.10x onnx [HINT_OF=bf16] over source" in text
    broken = drawn(report(GOOD, exit_code=3) | {"benchmark": UNMEASURED}).text
    assert "net: the delivery holds, but the benchmark could not be measured" in broken
    assert "benchmark ! error source stopped while its speed was measured Try: run it alone" in broken


def test_the_error_of_samples_is_drawn_as_it_is_spread() -> None:
    step = copy.deepcopy(GOOD)
    noise = step["check"]["cases"][0]["source"]["outputs"]["y"]["sqnr_db"]
    noise |= {"p50": 50.0, "histogram": {"perfect": 3, "low": 40.0, "high": 60.0, "counts": [1, 0, 9]}}
    text = drawn(report(step, exit_code=0)).text
    assert "from 40.0 dB to 60.0 dB in every row" in text
    assert "SQNR from 40.0 dB to 60.0 dB, median 50.0 dB and 3 samples without any error" in text
    noise["histogram"] = {"perfect": 100, "low": 300.0, "high": 300.0, "counts": [0]}
    assert "100 samples without any error" in drawn(report(step, exit_code=0)).text


def test_no_text_of_a_report_becomes_markup() -> None:
    bad = spoilt(BAD)
    bad["name"] = bad["optkit"] = NASTY
    bad["recipe"] = {"path": NASTY, "set": [NASTY]}
    bad["steps"][0] |= {"id": NASTY, "pass": NASTY, "target": NASTY, "options": {NASTY: NASTY}, "notes": {"a": [NASTY]}}
    for step in bad["steps"]:
        step["parent"] = NASTY if step["parent"] == "onnx" else step["parent"]
    bad["environment"] = {NASTY: NASTY}
    page, plain = drawn(bad), drawn(BAD)
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert "</script><img src=x onerror=alert(1)>" in page.text
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\u202e]", render(bad))
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain.elements} | {"details", "summary", "pre"}


def test_the_policy_allows_the_one_script_alone() -> None:
    policy = next(a for a in drawn(BAD).all("meta") if a.get("http-equiv") == "Content-Security-Policy")["content"]
    assert re.fullmatch(
        r"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-[\w+/]{43}='", policy or ""
    )


def test_the_front_is_what_nothing_proven_beats() -> None:
    def point(name: str, x: float, y: float, proven: bool = True) -> Point:
        return Point(name, x, y, y, y, proven)

    points = [point("slow", 9, 0.99), point("best", 3, 0.99), point("small", 1, 0.9), point("beaten", 4, 0.95),
              point("unproven", 0.5, 1.0, proven=False), point("worse", 1, 0.8)]  # fmt: skip
    assert [p.name for p in front(points)] == ["small", "best"]
    assert [p.name for p in front(points, up=False)] == ["worse"]


def test_a_tree_is_walked_whole_whatever_its_parents_say() -> None:
    steps = [GOOD | {"id": "a", "parent": "b"}, GOOD | {"id": "b", "parent": "a"}, GOOD | {"id": "c", "parent": "gone"},
             GOOD | {"id": "d", "parent": "c"}]  # fmt: skip
    assert [(step["id"], depth) for step, depth in lineage(steps)] == [("c", 1), ("d", 2), ("a", 1), ("b", 1)]
    drawn(report(*steps[:2]))


def test_a_delivery_with_a_race_has_its_place_in_the_charts() -> None:
    page = drawn(report(GOOD, MUST, exit_code=1))
    assert "0.50 times as fast as onnx (0.40 to 0.60)" in page.text
    assert "✗ slower" in page.text


def test_a_report_of_nothing_is_drawn() -> None:
    assert "None." in drawn({"name": "net", "exit_code": 2, "steps": [], "deliver": []}).text


def test_drawing_loads_no_backend_and_no_numpy() -> None:
    code = (
        "import sys; from optkit.reports import html, junit, markdown;"
        "[draw.render({'name': 'n', 'exit_code': 0}) for draw in (html, junit, markdown)];"
        "heavy = {'numpy', 'torch', 'onnx', 'onnxruntime', 'openvino', 'tensorflow', 'rich'};"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


def test_a_tag_may_have_any_attribute() -> None:
    assert tag("meta", name="a", data_label='"<') == '<meta name="a" data-label="&quot;&lt;">'
