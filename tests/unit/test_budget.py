"""A budget's search, on a model whose damage is known: each group adds its own error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from planning_kit import fill, plan_of, problems_of

from optkit.cache import Cache
from optkit.caching import keys
from optkit.errors import StepError, UserError
from optkit.formats import budget
from optkit.formats.budget import Group
from optkit.plugin import Context


def context(path: Path) -> Context:
    return Context((), (), {}, path)


def additive(errors: Mapping[str, float], tried: list[list[str]]) -> Any:
    """Groups whose squared errors add up, as independent rounding errors do."""

    def lower(chosen: Sequence[Group], quick: bool) -> Mapping[str, Any]:
        tried.append([g.name for g in chosen])
        error = sum(errors[g.name] ** 2 for g in chosen) ** 0.5
        metric = {"worst": error, "worst_sample": 0, "mean": error}
        return {"samples": 4, "problems": [], "notes": [], "outputs": {"y": {"rel_l2": metric}}}

    return lower


def groups(errors: Mapping[str, float]) -> list[Group]:
    return [Group(name, (f"{name}.a", f"{name}.b")) for name in errors]


def kept(errors: Mapping[str, float], bound: str, path: Path, tried: list[list[str]] | None = None) -> list[str]:
    found = budget.keep(
        groups(errors), budget.stated([bound]), additive(errors, [] if tried is None else tried), context(path)
    )
    return [group.name for group in found]


ERRORS = {"a": 0.001, "b": 0.2, "c": 0.01, "d": 0.1, "e": 0.002}


def test_nothing_is_kept_where_the_bound_holds_anyway(tmp_path: Path) -> None:
    tried: list[list[str]] = []
    assert kept(ERRORS, "rel_l2 <= 0.5", tmp_path, tried) == []
    assert tried == [["a", "b", "c", "d", "e"]]


@pytest.mark.parametrize(
    ("bound", "wanted"),
    [("rel_l2 <= 0.15", ["b"]), ("rel_l2 <= 0.05", ["b", "d"]), ("rel_l2 <= 0.005", ["b", "d", "c"])],
)
def test_the_fewest_that_hold_it(bound: str, wanted: list[str], tmp_path: Path) -> None:
    assert kept(ERRORS, bound, tmp_path) == wanted
    found = budget.found(context(tmp_path))
    assert found is not None
    assert found["kept"] == [f"{name}.{part}" for name in wanted for part in "ab"]
    assert [row["group"] for row in found["ranking"]] == ["b", "d", "c", "e", "a"]
    assert [row["kept"] for row in found["ranking"]] == [name in wanted for name in "bdcea"]


def test_one_that_was_kept_in_vain_is_lowered_again(tmp_path: Path) -> None:
    """Errors that cancel: d alone is bad, but with b kept it does no harm."""

    def lower(chosen: Sequence[Group], quick: bool) -> Mapping[str, Any]:
        names = {g.name for g in chosen}
        error = 0.3 if "b" in names else 0.25 if names == {"d"} else 0.01
        metric = {"worst": error, "mean": error}
        return {"samples": 1, "problems": [], "notes": [], "outputs": {"y": {"rel_l2": metric}}}

    found = budget.keep(groups(ERRORS), budget.stated(["rel_l2 <= 0.1"]), lower, context(tmp_path))
    assert [g.name for g in found] == ["b"]


def test_a_budget_that_cannot_be_held_says_how_close_it_came(tmp_path: Path) -> None:
    with pytest.raises(StepError) as error:
        kept({"a": 0.3, "b": 0.2}, "rel_l2 <= 0.01", tmp_path)
    assert "cannot be held: rel_l2 <= 0.01" in error.value.what
    assert "with 1 of 2 groups kept" in error.value.what
    assert "'a' does most" in error.value.hint
    assert error.value.details.splitlines()[0].startswith("#" * 30)


def test_a_trial_with_problems_counts_as_the_worst() -> None:
    assert budget.damage({"problems": [{"text": "NaN"}], "outputs": {}}) == float("inf")


def test_operators_join_the_heavy_one_before_them_and_those_that_share_its_input() -> None:
    found = budget.grouped([("cast", False, "x"), ("q", True, "h"), ("k", True, "h"), ("add", False, "q"),
                            ("mlp", True, "h2"), ("relu", False, "mlp"), ("v", True, "h")])  # fmt: skip
    assert found == [Group("q", ("cast", "q", "k", "add", "v")), Group("mlp", ("mlp", "relu"))]


def test_many_groups_are_merged_with_their_neighbours() -> None:
    found = budget.grouped([(f"n{i}", True, f"n{i}") for i in range(200)])
    assert len(found) <= budget.MOST_GROUPS
    assert [m for group in found for m in group.members] == [f"n{i}" for i in range(200)]


@pytest.mark.parametrize(
    ("text", "said"),
    [("cosine", "no >= or <="), ("cosign >= 0.9", "unknown metric"), ("wer_rise <= 1%", "does not declare")],
)  # fmt: skip
def test_what_is_no_budget(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        budget.stated([text])


RECIPE = """version: 1
model: {torch: net.py:build}
inputs: {image: {shape: [batch, 1, 8, 8], dtype: float32}}
outputs: [logits, boxes]
dims: {batch: {min: 1, opt: 2, max: 4}}
data:
  fit: {random: 8, seed: 1}
  some: {npz: fit.npz, label: kind}
  judge: {npz: judge.npz, label: [kind, text]}
check_on: judge
metric: [{accuracy: {output: logits, target: kind}}, {wer: {output: boxes, target: text}}]
steps:
  - {id: onnx, to: onnx}
  - {id: low, from: onnx, use: onnx.quantize, data: DATA, check: ["cosine >= 0.9"],
     with: {budget: [BUDGET]}}
"""


@pytest.mark.parametrize(
    ("data", "bound", "what", "hint"),
    [
        ("some", '"accuracy_drop <= 0.5%"', "", ""),
        ("some", '"cosine >= 0.9", "cosign >= 0.9"', "unknown metric 'cosign'", "did you mean cosine?"),
        ("some", '"logit.cosine >= 0.9"', "names no output of the model", "did you mean 'logits'?"),
        ("some", '"f1_drop <= 1%"', "'f1_drop' is of a metric that the recipe does not declare", "`metric: f1`"),
        ("some", '"wer_rise <= 1%"', "metric wer: data.some has no label 'text'", "one of: kind"),
        ("fit", '"accuracy_drop <= 0.5%"', "metric accuracy: it needs labels, and data.fit has none", "`label: NAME`"),
    ],
)
def test_a_budget_is_planned_with_the_rest(data: str, bound: str, what: str, hint: str, tmp_path: Path) -> None:
    fill(tmp_path)
    text = RECIPE.replace("DATA", data).replace("BUDGET", bound)
    if not what:
        assert plan_of(text, tmp_path)
        return
    ((line, said, told),) = problems_of(text, tmp_path)
    assert line == 15
    assert what in said
    assert hint in told


def test_what_a_budget_measures_decides_the_cached_result(tmp_path: Path) -> None:
    fill(tmp_path)
    cache = Cache(tmp_path / "cache")

    def key(bound: str, target: str) -> str | None:
        text = RECIPE.replace("DATA", "some").replace("BUDGET", f'"{bound}"').replace("target: kind", target)
        plan = plan_of(text, tmp_path)
        return keys.reads_key(plan, plan.step("low"), cache)

    changed = "target: kind, ignore: 3"
    assert key("accuracy_drop <= 0.5%", "target: kind") != key("accuracy_drop <= 0.5%", changed)
    assert key("cosine >= 0.9", "target: kind") == key("cosine >= 0.9", changed), "no budget names the metric"
