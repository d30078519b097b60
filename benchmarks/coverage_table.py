"""The results of benchmarks/coverage.py and shrinking.py as text: one line per subject, totals, and Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Data = Mapping[str, Any]

SIGNS = {"held": "held", "refused": "refused", "failed": "FAILED"}


def cell(result: Data | None, dims: Sequence[str]) -> str:
    """One result: "held", "held, fixed sequence", "refused", "FAILED", or "" where nothing was tried."""
    if result is None:
        return ""
    fixed = [dim for dim in dims if dim not in result["dims"]]
    said = SIGNS[result["result"]]
    said += f", {result['how']}" if "how" in result else ""
    return f"{said}, fixed {' and '.join(fixed)}" if fixed and result["result"] == "held" else said


def line(subject: Data, targets: Mapping[str, Any]) -> str:
    """One subject on one line, for the terminal."""
    dims, results = subject.get("dims", []), subject["targets"]
    parts = [f"{key} {cell(results[key], dims)}" for key in targets if key in results]
    return f"{subject['name']:36} " + "; ".join(parts)


def totals(results: Sequence[Data], target: str) -> dict[str, int]:
    """How many subjects a target held, refused and failed; and of those held, how many with every dim dynamic."""
    found = [(r["targets"][target], r.get("dims", [])) for r in results if target in r["targets"]]
    counts = {sign: sum(result["result"] == sign for result, _ in found) for sign in SIGNS}
    full = sum(result["result"] == "held" and set(result["dims"]) >= set(dims) for result, dims in found)
    batch = sum(
        result["result"] == "held" and ("batch" in result["dims"] or "batch" not in dims) for result, dims in found
    )
    return {**counts, "all dims": full, "batch": batch, "subjects": len(found)}


def groups(results: Sequence[Data]) -> dict[str, list[Data]]:
    """The subjects by kind of source."""
    made: dict[str, list[Data]] = {"PyTorch architectures": [], "ONNX files": []}
    for result in results:
        made["ONNX files" if str(result.get("family", "")).startswith("onnx") else "PyTorch architectures"].append(
            result
        )
    return {title: subjects for title, subjects in made.items() if subjects}


def write(results: Sequence[Data], targets: Mapping[str, Any], markdown: Path | None, build: Path,
          introduction: str) -> None:  # fmt: skip
    """Print the totals, and write the JSON, and the Markdown with its introduction where a path is given."""
    everything = {
        title: {key: totals(subjects, key) for key in targets if any(key in s["targets"] for s in subjects)}
        for title, subjects in groups(results).items()
    }
    (build / "coverage.json").write_text(json.dumps({"totals": everything, "subjects": results}, indent=1) + "\n")
    for title, by_target in everything.items():
        print(f"\n{title}")
        columns = f"{'target':14} {'subjects':>8} {'held':>6} {'share':>7} {'refused':>8} {'failed':>7}"
        print(f"{columns}   dynamic: all dims, batch")
        for key, count in by_target.items():
            share = count["held"] / count["subjects"]
            print(f"{targets[key].title:14} {count['subjects']:8} {count['held']:6} {share:7.1%} {count['refused']:8} "
                  f"{count['failed']:7}   {count['all dims']}, {count['batch']}")  # fmt: skip
    if markdown:
        markdown.write_text(
            "\n".join([introduction, *_document(results, targets, everything)]).rstrip() + "\n", encoding="utf-8"
        )
        print(f"\n{markdown}")


def _document(results: Sequence[Data], targets: Mapping[str, Any], everything: Data) -> Iterator[str]:
    for title, subjects in groups(results).items():
        shown = list(everything[title])
        yield f"## {title}\n"
        yield "| target | subjects | held | refused with a reason | failed | held with every dim dynamic |"
        yield "|---|---|---|---|---|---|"
        for key, n in everything[title].items():
            held = f"{n['held']} ({n['held'] / n['subjects']:.1%})"
            row = (targets[key].title, n["subjects"], held, n["refused"], n["failed"], n["all dims"])
            yield f"| {' | '.join(map(str, row))} |"
        yield ""
        yield f"| subject | kind | {' | '.join(targets[key].title for key in shown)} |"
        yield "|---|---|" + "---|" * len(shown)
        for subject in subjects:
            cells = [cell(subject["targets"].get(key), subject.get("dims", [])) for key in shown]
            yield f"| {subject['name']} | {subject.get('family', '')} | {' | '.join(cells)} |"
        reasons = list(_reasons(subjects, targets))
        if reasons:
            yield "\nWhat was not held, and why:\n"
            yield from reasons
        yield ""


def _reasons(subjects: Sequence[Data], targets: Mapping[str, Any]) -> Iterator[str]:
    for subject in subjects:
        for key, result in subject["targets"].items():
            if result["result"] != "held":
                hint = f" *Try:* {_plain(result['hint'])}" if result.get("hint") else ""
                what = f"**{subject['name']}, {targets[key].title}** ({result['result']})"
                yield f"- {what}: {_plain(result['reason'])}.{hint}"


def _plain(text: str) -> str:
    """A reason on one line, without the folders of this machine."""
    return re.sub(r"/\S*/(site-packages|benchmarks)/", "", " ".join(text.split())).replace("|", "\\|").rstrip(".")
