"""Task metrics of one's own: callables and classes, and what they get wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scoring_kit import LABELS, LOGITS, score, value

from optkit.errors import UserError
from optkit.scoring.base import Batch
from optkit.scoring.callables import LIMIT_BYTES, Called
from optkit.scoring.measure import Scoring, scorer_of
from optkit.spec.metricspec import KINDS, metric_of

CALLABLES = """
def share(predictions, targets, scale=1.0):
    return scale * sum(int(p.argmax() == t) for p, t in zip(predictions, targets)) / len(targets)

def both(predictions, targets):
    return sum(p["a"].sum() + p["b"].sum() for p in predictions) / len(predictions)

class Share:
    def __init__(self, scale=1.0):
        self.scale, self.right, self.seen = scale, 0, 0
    def update(self, predictions, targets):
        self.right += (predictions.argmax(-1) == targets).sum()
        self.seen += len(targets)
    def compute(self):
        return self.scale * self.right / self.seen

CALLS = []

def fickle(predictions, targets):
    CALLS.append(1)
    return len(CALLS)

def none(predictions, targets):
    return None

def fails(predictions, targets):
    raise KeyError("no such thing")

text = "x"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(CALLABLES)
    return tmp_path


@pytest.mark.parametrize("name", ["share", "Share"])
def test_a_callable_is_asked_like_a_built_in(folder: Path, name: str) -> None:
    outputs, labels = {"y": LOGITS}, list(LABELS)
    expected = value({"accuracy": {}}, outputs, labels)
    metric = {"python": {"call": f"mine.py:{name}", "kwargs": {"scale": 2}}}
    assert value(metric, outputs, labels, base=folder) == pytest.approx(2 * expected)
    made = score({"python": {"call": f"mine.py:{name}", "resamples": 100}}, LOGITS, -LOGITS, labels, folder)
    assert made["source"] == pytest.approx(expected)
    assert made["change_interval"][0] > 0


def test_a_callable_of_several_outputs(folder: Path) -> None:
    metric = {"python": {"call": "mine.py:both", "outputs": ["a", "b"]}}
    assert value(metric, {"a": np.ones((5, 2)), "b": np.ones((5, 3))}, base=folder) == 5


def test_a_class_of_torchs_gets_tensors(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nclass M(torch.nn.Module):\n    def update(self, p, t):\n"
        "        assert isinstance(p, torch.Tensor) and isinstance(t, torch.Tensor)\n"
        "        self.v = (p.argmax(-1) == t).float().mean()\n    def compute(self):\n        return self.v\n"
    )
    made = value({"python": "net.py:M"}, {"y": LOGITS}, list(LABELS), base=tmp_path)
    assert made == pytest.approx(value({"accuracy": {}}, {"y": LOGITS}, list(LABELS)))


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ("mine.py:fails", "mine.py:fails: calling it raised KeyError: 'no such thing', at "),
        ("mine.py:none", "mine.py:none returned None, not a number"),
        ("mine.py:fickle", "it gives 1 and then 2 for the same predictions"),
        ("mine.py:shar", "mine.py has no 'shar'"),
        ("mine.py:text", "mine.py:text is no callable but a str"),
        ("gone.py:share", "gone.py does not exist"),
    ],
)
def test_a_callable_at_fault_is_an_error(folder: Path, call: str, what: str) -> None:
    with pytest.raises(UserError) as caught:  # noqa: PT012
        scoring = Scoring([metric_of({"name": "mine", "python": call})], folder, 0)
        scoring.add({}, [0, 1], {"y": np.zeros((2, 3))}, {"y": np.zeros((2, 3))}, 2)
        scoring.result(lambda text, fraction: None)
    assert what in caught.value.what
    assert caught.value.subject == "metric.mine"


def test_predictions_that_do_not_fit_into_memory_are_an_error(folder: Path) -> None:
    scorer = scorer_of(metric_of({"python": "mine.py:share"}), folder)
    assert isinstance(scorer, Called)
    scorer.bytes = LIMIT_BYTES
    with pytest.raises(Exception, match="the predictions of 2 samples take over 2 GiB"):
        scorer.add(Batch({}, [0, 1], 2, 0), {"y": np.zeros((2, 3))})


def test_every_kind_has_a_scorer(folder: Path) -> None:
    need = {"top_k": 1, "python": "mine.py:share"}
    assert all(scorer_of(metric_of({kind: need.get(kind)}), folder) for kind in KINDS)
