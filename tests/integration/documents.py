"""The code blocks of the README and the guides, and what a fragment of a recipe is put into."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>\S*)\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S)
_NOTE = re.compile(r"<!-- (?P<word>not run|into): (?P<what>(?:(?!-->).)+?) -->\s*$", re.S)


@dataclass(frozen=True)
class Block:
    """A code block. not_run: why it cannot be run, as the document says. into: the recipe a fragment is put into."""

    document: Path
    line: int
    kind: str
    text: str
    not_run: str
    into: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks(document: Path) -> list[Block]:
    """The code blocks of a document, each with the HTML comment right above it."""
    text = document.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        note = _NOTE.search(text[: fence.start()])
        said = {note["word"]: note["what"]} if note else {}
        line = text.count("\n", 0, fence.start()) + 1
        found.append(Block(document, line, fence["kind"], fence["text"], said.get("not run", ""), said.get("into", "")))
    return found


BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]


def of_kind(*kinds: str) -> list[Block]:
    """The blocks of these kinds that can be run."""
    return [block for block in BLOCKS if block.kind in kinds and not block.not_run]


def readme() -> str:
    """The README's recipe, which its other blocks and the guides speak of as recipes/digits.yaml."""
    return next(block.text for block in blocks(ROOT / "README.md") if block.kind == "yaml")


STEPS: dict[str, dict[str, Any]] = {
    "onnx": {"to": "onnx"},
    "slim": {"from": "onnx", "use": "onnx.simplify"},
    "ov": {"from": "onnx", "to": "openvino"},
    "lite": {"to": "tflite"},
    "int8": {"from": "onnx", "use": "onnx.quantize", "data": "fit", "check": ["cosine >= 0.98"]},
    **{f"STEP_THAT_GIVES_{to.upper()}": {"to": to} for to in ("onnx", "openvino", "tflite")},
    "STEP_THAT_GIVES_SAVEDMODEL": {"from": "STEP_THAT_GIVES_ONNX", "to": "savedmodel"},
}
"""The steps that fragments begin at by name."""

KERAS, DIGITS = "recipes/keras-digits.yaml", "recipes/digits.yaml"
ANY = {
    "recipes/any.yaml": {
        "version": 1, "model": {"onnx": "any.onnx"}, "check_on": "judge",
        "data": {"fit": {"random": 8, "seed": 1}, "judge": {"npz": "../judge.npz"}},
        "steps": [{"id": "ov", "to": "openvino"}],
    },
    "recipes/graph.yaml": {
        "version": 1, "model": {"tf_graph": "any.pb", "inputs": ["x"], "outputs": ["y"]}, "check_on": "judge",
        "data": {"fit": {"random": 8, "seed": 1}, "judge": {"random": 8}}, "steps": [],
    },
}  # fmt: skip
"""Recipes that stand for a model the documents only speak of."""


def base_of(block: Block, steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The recipe that a fragment is put into: the one named above it, else one whose model its first step takes."""
    use = str(steps[0].get("use", "")) if steps else ""
    kind = {"keras": KERAS, "tf_graph": "recipes/graph.yaml"}.get(use.partition(".")[0], DIGITS)
    name = block.into or kind
    if name in ANY:
        return deepcopy(ANY[name])
    if name == DIGITS:
        return dict(yaml.safe_load(readme()))
    return dict(yaml.safe_load((ROOT / name).read_text(encoding="utf-8")))


def steps_of(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A fragment's steps, after those of `STEPS` that they name and do not have."""
    made = [dict(step) for step in given]
    while True:
        ids = {step["id"] for step in made}
        lacking = [s["from"] for s in made if "from" in s and s["from"] not in ids | {"source"}]
        if not lacking:
            return made
        assert lacking[0] in STEPS, f"a fragment begins at {lacking[0]!r}: add that step to it, or to STEPS"
        made.insert(0, {"id": lacking[0], **STEPS[lacking[0]]})


def recipes_of(block: Block) -> list[dict[str, Any]]:
    """The recipe that a block of YAML is, or that it makes of the one it is put into; of metrics, one each."""
    given = yaml.safe_load(block.text)
    if isinstance(given, dict) and "version" in given:
        return [given]
    if isinstance(given, list):
        given = {"steps": given}
    made = base_of(block, given.get("steps", [])) | given
    made["steps"] = steps_of(made["steps"])
    taken = {step.get("from") for step in made["steps"]}
    if "deliver" not in given:
        made["deliver"] = [step["id"] for step in made["steps"] if step["id"] not in taken]
    if not isinstance(given.get("metric"), list):
        return [made]
    each = [deepcopy(made) | {"metric": metric} for metric in given["metric"]]
    for recipe in each:
        labels = ["boxes", "kinds"] if "map" in recipe["metric"] else "label"
        recipe["data"]["judge"]["label"] = labels
    return each


def merged(recipes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One recipe of all steps of several over one model, equal ones once: a run of it pays for each import once."""
    steps: dict[str, dict[str, Any]] = {}
    for recipe in recipes:
        names = {"source": "source"}
        for step in recipe["steps"]:
            body = {k: v for k, v in step.items() if k != "id"}
            if "from" in body:
                body["from"] = names[body["from"]]
            names[step["id"]] = next((i for i, other in steps.items() if other == body), f"s{len(steps)}")
            steps[names[step["id"]]] = body
    made = [{"id": name, **body} for name, body in steps.items()]
    taken = {body.get("from") for body in steps.values()}
    return {**recipes[0], "name": "all", "speed": False, "steps": made, "deliver": [n for n in steps if n not in taken]}


def project(folder: Path) -> Path:
    """A project as the documents speak of: recipes/ with the README's as digits.yaml, and the files that they name."""
    recipes = folder / "recipes"
    recipes.mkdir(parents=True)
    for name in ("recipes/models", "calibration"):
        (folder / name).symlink_to(ROOT / name)
    (recipes / "digits.yaml").write_text(readme(), encoding="utf-8")
    for name in ("minilm", "keras-digits"):
        shutil.copy(ROOT / f"recipes/{name}.yaml", recipes)
    for name in ("judge", "fit"):
        shutil.copy(ROOT / f"calibration/digits-{name}.npz", folder / f"{name}.npz")
    (recipes / "vocab.json").write_text('["<pad>", " ", "a"]', encoding="utf-8")
    (recipes / "metrics.py").write_text("def mae(predictions, targets):\n    return 0.0\n", encoding="utf-8")
    (recipes / "small.py").symlink_to(ROOT / "recipes/models/digits.py")
    (recipes / "train.py").write_text("def train(module, data, **more):\n    return module\n", encoding="utf-8")
    for name in ("any.onnx", "any.pb"):
        (recipes / name).touch()
    return folder
