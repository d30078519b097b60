"""`metric:` in a recipe: its forms, the bounds they make possible, and what planning says about mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from planning_kit import GOOD, fill, plan_of, problems_of

from optkit.parity.bounds import BoundError, parse_bound
from optkit.recipe import recipe_from_text
from optkit.spec.metricspec import bound_table, metric_of, metrics_of

LABELLED = GOOD.replace("judge.npz}", "judge.npz, label: label}")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = fill(tmp_path_factory.mktemp("plan"))
    (folder / "metrics.py").write_text("def wer(p, t): ...\n", encoding="utf-8")
    (folder / "vocab.txt").write_text("a\n", encoding="utf-8")
    return folder


def with_metric(metric: str, check: str = '"cosine >= 0.99"', text: str = LABELLED) -> str:
    """The good recipe with a `metric:` in line 15 and other bounds on int8 in line 19."""
    return text.replace("check_on: judge\n", f"check_on: judge\nmetric: {metric}\n").replace('"cosine >= 0.99"', check)


@pytest.mark.parametrize(
    ("metric", "names"),
    [
        ("accuracy", ["accuracy"]),
        ("{accuracy: logits}", ["accuracy"]),
        ("{top_k: 5}", ["top5"]),
        ("{f1: {average: macro, output: logits}}", ["f1"]),
        ("[accuracy, {top_k: 3}, {top_k: 5}, {f1: }]", ["accuracy", "top3", "top5", "f1"]),
        ("[{name: miou, iou: {axis: 1}}, {name: wer, python: 'metrics.py:wer'}]", ["miou", "wer"]),
        ("{python: {call: 'metrics.py:wer', better: lower, kwargs: {a: 1}}}", ["wer"]),
        ("{map: {boxes: logits, scores: logits, target_boxes: label, target_labels: label}}", ["map"]),
        ("{wer: {decode: ctc, vocabulary: vocab.txt}}", ["wer"]),
        ("{perplexity: image}", ["perplexity"]),
        ("{retrieval: {k: 1, relevant: source}}", ["retrieval"]),
    ],
)
def test_the_forms_of_a_metric(base: Path, metric: str, names: list[str]) -> None:
    recipe = plan_of(with_metric(metric), base).recipe
    assert [m.name for m in recipe.metrics] == names
    again = metrics_of({"metrics": [m.to_json() for m in recipe.metrics]})
    assert [(m.name, m.options) for m in again] == [(m.name, m.options) for m in recipe.metrics]


@pytest.mark.parametrize(
    ("metric", "what", "hint"),
    [
        ("acuracy", "metric: there is no metric 'acuracy'", "did you mean 'accuracy'?"),
        ("{acuracy: {}}", "metric: unknown key 'acuracy'", "did you mean 'accuracy'?"),
        ("{accuracy: {}, output: logits}", "metric: unknown key 'output'", "options go below the metric: accuracy"),
        ("{name: a}", "metric: names no metric", "one of: accuracy, top_k"),
        ("{accuracy: {}, f1: {}}", "metric: names 2 metrics: accuracy, f1", "make it a list"),
        ("[]", "metric: names no metric", "write `metric: accuracy`"),
        ("5", "metric: should be a name or a mapping, got 5", "write `metric: accuracy`"),
        ("", "metric: should be a name or a mapping, got None", "write `metric: accuracy`"),
        ("[accuracy, accuracy]", "metric: two metrics are called 'accuracy'", "give one of them a name:"),
        ("{name: 5, f1: {}}", "metric: the name should be a word, got 5", "name: quality"),
        ("{name: cosine, f1: {}}", "metric: 'cosine' cannot be a metric's name", "optkit measures that"),
        ("{name: a_drop, f1: {}}", "metric: 'a_drop' cannot be a metric's name", "bounds use such endings"),
        ("{name: a-b, f1: {}}", "metric: 'a-b' cannot be a metric's name", "use letters, digits and underscores"),
        ("{f1: {averag: micro}}", "metric f1: unknown key 'averag'", "did you mean 'average'?"),
        ("{f1: makro}", "metric f1: average: 'makro' is not one of", "did you mean 'macro'?"),
        ("top_k", "metric top_k: lacks the key 'k'", "k: how many classes count"),
        ("{top_k: 0}", "metric top_k: k: should be greater than or equal to 1, got 0", "how many classes count"),
        ("{top_k: five}", "metric top_k: k: should be a valid integer, got 'five'", "how many classes count"),
        ("{accuracy: {confidence: 95}}", "metric accuracy: confidence: should be less than or equal to 0.999", "of"),
        ("{accuracy: {resamples: 10}}", "metric accuracy: resamples: should be greater than or equal to 100", "boots"),
        ("{map: {boxes: logits}}", "metric map: names one of boxes and scores", "name both, or an output:"),
        ("{map: {output: logits, boxes: a, scores: b}}", "metric map: has both output: and boxes:", "keep one"),
        ("{map: {iou: [0.5, 50]}}", "metric map: iou thresholds lie above 0, up to 1", "for example [0.5]"),
        ("{retrieval: {relevant: source, measure: mrr}}", "metric retrieval: relevant: source takes no", "it is"),
        ("{python: metrics}", "metric python: call: 'metrics' names no callable", "write file.py:name"),
        ("{python: 'metric.py:wer'}", "metric wer: ", "did you mean 'metrics.py'?"),
        ("{python: 'no_such_module:wer'}", "metric wer: there is no module 'no_such_module'", "install it"),
        ("{wer: {vocabulary: vocab.tx}}", "metric wer: ", "did you mean 'vocab.txt'?"),
        ("{accuracy: {output: logit}}", "metric accuracy: the model has no output 'logit'", "did you mean 'logits'?"),
        ("{accuracy: {target: labl}}", "metric accuracy: data.judge has no label 'labl'", "did you mean 'label'?"),
        ("{perplexity: }", "metric perplexity: the model has no input 'input_ids'", "one of: image"),
        ("{perplexity: {tokens: image, mask: imag}}", "metric perplexity: the model has no input 'imag'", "'image'?"),
        ("map", "metric map: data.judge has no label 'boxes'", "one of: label"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_its_line_with_a_remedy(base: Path, metric: str, what: str, hint: str) -> None:
    found = problems_of(with_metric(metric), base)
    lines = [(said, told) for line, said, told in found if line == 15]
    assert lines, found
    assert any(said.startswith(what) and hint in told for said, told in lines), found


def test_names_whose_figures_meet_are_told(base: Path) -> None:
    # x_rise of a metric that is better low is no ending that a name may have, so two names meet nowhere else.
    twice = "[{name: x, f1: {}}, {name: x, python: {call: 'metrics.py:wer', better: lower}}]"
    ((_, what, hint),) = problems_of(with_metric(twice), base)
    assert (what, hint) == ("metric: two metrics are called 'x'", "give one of them a name:")


def test_labels_that_are_lacking_or_too_many(base: Path) -> None:
    ((line, what, hint),) = problems_of(with_metric("accuracy", text=GOOD), base)
    assert (line, what, hint) == (
        15, "metric accuracy: it needs labels, and data.judge has none", "add `label: NAME` to data.judge"
    )  # fmt: skip
    several = GOOD.replace("judge.npz}", "judge.npz, label: [boxes, labels]}")
    ((line, what, hint),) = problems_of(with_metric("accuracy", text=several), base)
    assert (line, what, hint) == (
        15, "metric accuracy: data.judge has 2 labels", "add target: one of boxes, labels"
    )  # fmt: skip
    assert plan_of(with_metric("[map, {accuracy: {target: labels}}]", text=several), base)
    assert plan_of(with_metric("{perplexity: image}", text=GOOD), base), "its targets are what the model is fed"
    twice = GOOD.replace("judge.npz}", "judge.npz, label: [a, a]}")
    assert "is no list of labels" in problems_of(twice, base)[0][1]


def test_bounds_on_declared_metrics(base: Path) -> None:
    bounds = '"accuracy >= 95%", "accuracy_lower >= 94%", "accuracy_drop <= 0.5%", "accuracy_drop_upper <= 1%"'
    metric = "[accuracy, {name: e, wer: ids}]"
    plan = plan_of(with_metric(metric, f'{bounds}, "e_rise <= 2%"'), base)
    found = plan.step("int8").check.bounds
    assert [(b.metric, b.op, b.value, b.info.task, b.info.part) for b in found] == [
        ("accuracy", ">=", 0.95, "accuracy", "value"), ("accuracy_lower", ">=", 0.94, "accuracy", "value_lower"),
        ("accuracy_drop", "<=", 0.005, "accuracy", "change"),
        ("accuracy_drop_upper", "<=", 0.01, "accuracy", "change_upper"), ("e_rise", "<=", 0.02, "e", "change"),
    ]  # fmt: skip
    table = bound_table(plan.recipe.metrics)
    assert [parse_bound(str(b), table) for b in found] == list(found)


@pytest.mark.parametrize(
    ("bound", "what", "hint"),
    [
        ("acuracy >= 9%", "unknown metric 'acuracy'", "did you mean accuracy?"),
        ("e_drop <= 1%", "unknown metric 'e_drop'", "did you mean e_rise?"),
        ("f1 >= 90%", "'f1' is of a metric that the recipe does not declare", "add `metric: f1`"),
        ("top5_drop <= 1%", "that the recipe does not declare", "add `metric: {top_k: 5}`"),
        ("accuracy_drop <= 0.5 points", "'0.5 points' is not a number", "write accuracy_drop <= 0.5%"),
        ("e >= 10%", "e is better when lower, so it is bounded with <=", "write e <= 0.1"),
        ("accuracy <= 10%", "accuracy is better when higher", "write accuracy >= 0.1"),
        ("accuracy_drop <= 5", "every model meets this", "did you mean 5%?"),
        ("logits.accuracy >= 9%", "accuracy is declared under metric:, its output with it", "write accuracy >= 9%"),
        ("e <= 0", "", ""),
        ("p <= 9%", "p takes no %", "write p <= 0.09"),
        ("p <= 0.5", "no model meets this", "give a value inside 1 to inf"),
    ],
)
def test_bounds_that_cannot_be_meant(base: Path, bound: str, what: str, hint: str) -> None:
    text = with_metric("[accuracy, {name: e, wer: ids}, {name: p, perplexity: image}]", f'"cosine >= 0.9", "{bound}"')
    if not what:
        assert plan_of(text, base)
        return
    ((line, said, told),) = problems_of(text, base)
    assert line == 19
    assert what in said
    assert hint in told


def test_accuracy_is_built_in_only_where_no_metric_is_declared(base: Path) -> None:
    assert plan_of(LABELLED.replace('"cosine >= 0.99"', '"accuracy_drop <= 1%"'), base)
    ((_, said, told),) = problems_of(with_metric("{f1: macro}", '"accuracy_drop <= 1%"'), base)
    assert "'accuracy_drop' is not declared under metric:" in said
    assert told.startswith("add accuracy to metric:")


def test_a_fault_in_the_metric_is_told_once(base: Path) -> None:
    found = problems_of(with_metric("acuracy", '"accuracy_drop <= 1%", "cosine >= 0.9"'), base)
    assert [what for _, what, _ in found] == ["metric: there is no metric 'acuracy'"]


def test_a_bound_without_a_task_is_known_everywhere() -> None:
    with pytest.raises(BoundError, match="unknown metric 'top5'"):
        parse_bound("top5 >= 90%")
    table = bound_table([metric_of({"top_k": 5})])
    assert parse_bound("top5 >= 90%", table).info.low == 0


def test_reading_loads_no_numpy(base: Path) -> None:
    (base / "r.yaml").write_text(with_metric("[accuracy, {f1: macro}, {python: 'metrics.py:wer'}]"), encoding="utf-8")
    code = "import sys; from optkit.recipe import load_recipe; from optkit.planning import make_plan\n"
    code += "make_plan(load_recipe(sys.argv[1])); print('numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(base / "r.yaml")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_the_guides_metrics_are_read() -> None:
    text = (Path(__file__).parents[2] / "docs/metrics.md").read_text(encoding="utf-8")
    entries = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])["metric"]
    read = [metric_of(entry if isinstance(entry, dict) else {entry: {}}) for entry in entries]
    assert [metric.name for metric in read] == ["accuracy", "map", "wer", "perplexity", "similarity", "mae"]


def test_a_metrics_place_is_found(base: Path) -> None:
    recipe = recipe_from_text(with_metric("[accuracy, {f1: macro}]"), base)
    assert [place and place.line for place in map(recipe.place_of, ("metric.f1", "metric.gone"))] == [15, 15]
    assert str(recipe.place_of("metric.f1")) != str(recipe.place_of("metric.accuracy"))
