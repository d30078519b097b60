"""A good recipe, the folder it needs, and what others say about a bad one: shared by the tests of planning."""

from __future__ import annotations

from pathlib import Path

import pytest

from optkit.errors import RecipeError
from optkit.planning import Plan, make_plan
from optkit.recipe import recipe_from_text

GOOD = """\
version: 1
name: digits
model:
  torch: net.py:build
  weights: net.safetensors
inputs:
  image: {shape: [batch, 1, 32, 32], layout: NCHW}
outputs: [logits]
dims:
  batch: {min: 1, opt: 8, max: 64}
data:
  fit: {npz: fit.npz}
  judge: {npz: judge.npz}
check_on: judge
steps:
  - {id: onnx, to: onnx}
  - {id: slim, from: onnx, use: onnx.simplify}
  - {id: int8, from: slim, use: onnx.quantize, data: fit, check: ["cosine >= 0.99"]}
  - {id: ov, from: slim, to: openvino}
deliver: [int8, ov]
"""

TOY = """\
version: 1
model: {file: m.toy}
data: {fit: {random: 4}, judge: {random: 4, seed: 1}}
check_on: judge
steps:
"""


def fill(base: Path) -> Path:
    """`base` with the files that the recipes here name."""
    (base / "net.py").write_text("def build(): ...\n", encoding="utf-8")
    for name in ("net.safetensors", "fit.npz", "judge.npz", "m.onnx", "m.toy", "m.other", "notes.txt"):
        (base / name).write_bytes(b"")
    return base


def plan_of(text: str, base: Path) -> Plan:
    return make_plan(recipe_from_text(text, base))


def problems_of(text: str, base: Path) -> list[tuple[int | None, str, str]]:
    with pytest.raises(RecipeError) as caught:
        plan_of(text, base)
    return [(p.where.line if p.where else None, p.what, p.hint) for p in caught.value.problems]
