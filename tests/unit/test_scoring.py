"""Task metrics against scikit-learn, the COCO reference implementation's figures and sums by hand."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from scoring_kit import LABELS, LOGITS, RNG, score, value

from optkit.errors import DataError, UserError
from optkit.parity.intervals import tango, wilson
from optkit.scoring.base import Batch
from optkit.scoring.language import edits
from optkit.scoring.measure import Scoring, scorer_of
from optkit.spec.metricspec import metric_of


def test_accuracy_and_top_k_of_classes() -> None:
    outputs, labels = {"y": LOGITS}, list(LABELS)
    assert value({"accuracy": None}, outputs, labels) == pytest.approx(
        sklearn.metrics.accuracy_score(LABELS, LOGITS.argmax(1))
    )
    assert value({"accuracy": {}}, {"y": LOGITS.argmax(1)}, labels) == value({"accuracy": {}}, outputs, labels)
    for k in (1, 2, 5):
        expected = sklearn.metrics.top_k_accuracy_score(LABELS, LOGITS, k=k)
        assert value({"top_k": k}, outputs, labels) == pytest.approx(expected)
    assert value({"top_k": 2}, {"y": np.zeros((4, 3))}, [0, 1, 2, 2]) == 0.5  # a tie goes to the lower index
    some = [int(n) if at % 3 else -1 for at, n in enumerate(LABELS)]
    counted = np.arange(300) % 3 > 0
    expected = sklearn.metrics.accuracy_score(LABELS[counted], LOGITS[counted].argmax(1))
    assert value({"accuracy": {}}, outputs, some) == pytest.approx(expected)
    assert value({"accuracy": {"ignore": 9}}, outputs, [9 if n < 0 else n for n in some]) == pytest.approx(expected)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_f1_of_classes(average: str) -> None:
    expected = sklearn.metrics.f1_score(LABELS, LOGITS.argmax(1), average=average)
    assert value({"f1": average}, {"y": LOGITS}, list(LABELS)) == pytest.approx(expected)


def test_f1_and_accuracy_of_one_binary_number() -> None:
    labels = (LABELS > 3).astype(int)
    scores = LOGITS[:, :1] + labels[:, None]
    expected = sklearn.metrics.f1_score(labels, scores[:, 0] > 0.5)
    options = {"average": "binary", "threshold": 0.5}
    assert value({"f1": options}, {"y": scores}, list(labels)) == pytest.approx(expected)
    assert value({"f1": {**options, "positive": 0}}, {"y": scores}, list(labels)) == pytest.approx(
        sklearn.metrics.f1_score(labels, scores[:, 0] > 0.5, pos_label=0)
    )
    assert value({"accuracy": {"threshold": 0.5}}, {"y": scores}, list(labels)) == pytest.approx(
        ((scores[:, 0] > 0.5) == labels).mean()
    )


def test_iou_of_maps_whatever_the_axis_of_classes() -> None:
    labels = RNG.integers(0, 5, (12, 8, 9))
    labels[0, 0] = -1
    scores = RNG.standard_normal((12, 5, 8, 9))
    flat = labels.ravel() >= 0
    said = scores.argmax(1).ravel()[flat]
    expected = sklearn.metrics.jaccard_score(labels.ravel()[flat], said, average="macro")
    assert value({"iou": {}}, {"y": scores}, list(labels), size=5) == pytest.approx(expected)
    assert value({"iou": {}}, {"y": np.moveaxis(scores, 1, -1)}, list(labels)) == pytest.approx(expected)
    alone = sklearn.metrics.jaccard_score(labels.ravel()[flat] == 2, said == 2)
    assert value({"iou": 2}, {"y": scores}, list(labels)) == pytest.approx(alone)


def test_a_nan_is_never_right() -> None:
    scores = np.full((4, 3), np.nan)
    for metric in ({"accuracy": {}}, {"top_k": 1}, {"f1": "macro"}, {"iou": {}}):
        assert value(metric, {"y": scores}, [0, 0, 1, 0]) == 0


# --- detection

# RNG(3)'s boxes below, by COCOeval of pycocotools 2.0.11: evaluate, accumulate, stats[0] and stats[1].
COCO_MAP, COCO_MAP50 = 0.2228939910100419, 0.5133969503880286


def detections() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """25 images with up to 5 objects of 3 classes, and 30 detections each of which some are padding; boxes as xywh."""
    rng = np.random.default_rng(3)
    boxes, scores, kinds, labels = [], [], [], []
    for _ in range(25):
        objects = int(rng.integers(0, 6))
        true = np.concatenate([rng.uniform(0, 60, (objects, 2)), rng.uniform(8, 35, (objects, 2))], 1)
        own = rng.integers(0, 3, objects)
        near = rng.integers(0, max(objects, 1), 30)
        found = true[near] if objects else np.tile([10.0, 10, 20, 20], (30, 1))
        found = found + rng.normal(0, 2, (30, 4))
        found[:, 2:] = np.abs(found[:, 2:]) + 1
        certain = rng.uniform(0.01, 1, 30).round(2)
        certain[int(rng.integers(5, 30)) :] = 0
        kind = own[near] if objects else np.zeros(30, int)
        boxes.append(found)
        scores.append(certain)
        kinds.append(np.where(rng.random(30) < 0.8, kind, rng.integers(0, 3, 30)))
        labels.append({"boxes": true, "labels": own})
    return {"b": np.array(boxes), "s": np.array(scores), "c": np.array(kinds)}, labels


MAP = {"boxes": "b", "scores": "s", "labels": "c", "format": "xywh"}


def test_map_is_cocos() -> None:
    outputs, labels = detections()
    assert value({"map": MAP}, outputs, labels, size=4) == pytest.approx(COCO_MAP, abs=1e-9)
    assert value({"map": {**MAP, "iou": [0.5]}}, outputs, labels) == pytest.approx(COCO_MAP50, abs=1e-9)


def test_map_takes_other_forms_of_the_same_boxes() -> None:
    outputs, labels = detections()
    expected = value({"map": MAP}, outputs, labels)
    corners = outputs["b"].copy()
    corners[..., 2:] += corners[..., :2]
    true = [{**label, "boxes": label["boxes"] @ np.array([[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]])}
            for label in labels]  # fmt: skip
    one = np.concatenate([corners, outputs["s"][..., None], outputs["c"][..., None]], -1)
    assert value({"map": "dets"}, {"dets": one}, true) == pytest.approx(expected)
    padded = [{"boxes": np.concatenate([label["boxes"], np.zeros((2, 4))]), "labels": [*label["labels"], -1, -1]}
              for label in labels]  # fmt: skip
    assert value({"map": MAP}, outputs, padded) == pytest.approx(expected)
    each = np.zeros((25, 30, 3))
    np.put_along_axis(each, outputs["c"][..., None], outputs["s"][..., None], -1)
    by_class = {"boxes": "b", "scores": "s", "format": "xywh"}
    assert value({"map": by_class}, {"b": outputs["b"], "s": each}, labels) == pytest.approx(expected)
    nothing = {**outputs, "s": np.zeros((25, 30))}
    assert value({"map": MAP}, nothing, labels) == 0


def test_a_resample_of_images_is_map_of_those_images() -> None:
    outputs, labels = detections()
    scorer = scorer_of(metric_of({"map": MAP}), Path())
    scorer.add(Batch({}, labels, 25, 0), outputs)
    chosen = np.arange(25) % 2 == 0
    expected = value({"map": MAP}, {n: t[chosen] for n, t in outputs.items()}, labels[::2])
    assert float(scorer.values(chosen[None].astype(int))[0]) == pytest.approx(expected)


# --- language


def test_edits() -> None:
    assert [edits(*pair) for pair in (("kitten", "sitting"), ("", "abc"), ("abc", ""), ("abc", "abc"))] == [3, 3, 3, 0]


def test_wer_of_text_ids_and_ctc(tmp_path: Path) -> None:
    texts = np.array(["the cat sat", "on a mat"])
    truth = ["the cat sat down", "on the mat"]
    assert value({"wer": "text"}, {"y": texts}, truth) == pytest.approx(2 / 7)
    assert value({"wer": {"decode": "text", "unit": "character"}}, {"y": texts}, truth) == pytest.approx(8 / 26)
    (tmp_path / "v.json").write_text('{"_": 0, "|": 1, "a": 2, "b": 3}')
    (tmp_path / "v.txt").write_text("_\n|\na\nb\n")
    frames = np.array([[2, 2, 0, 2, 1, 1, 3, 0], [3, 3, 3, 0, 0, 0, 0, 0]])  # "aa b", "b"
    for name in ("v.json", "v.txt"):
        metric = {"wer": {"decode": "ctc", "vocabulary": name}}
        assert value(metric, {"y": frames}, ["aa b", "a"], base=tmp_path) == pytest.approx(1 / 3)
        assert value(metric, {"y": np.eye(4)[frames]}, ["aa b", "b"], base=tmp_path) == 0
    assert value({"wer": {"drop": [0]}}, {"y": np.array([[5, 6, 0], [7, 0, 0]])}, [[5, 6], [7, 8]]) == 0.25


def test_perplexity_is_of_each_next_token() -> None:
    ids, mask = RNG.integers(0, 30, (10, 12)), np.ones((10, 12), int)
    mask[3, 5:] = 0
    logits = RNG.standard_normal((10, 12, 30))
    nats = [-math.log(math.exp(logits[n, t, ids[n, t + 1]]) / np.exp(logits[n, t]).sum())
            for n in range(10) for t in range(11) if mask[n, t + 1]]  # fmt: skip
    feeds = {"input_ids": ids, "attention_mask": mask}
    expected = math.exp(np.mean(nats))
    assert value({"perplexity": None}, {"y": logits}, feeds=feeds, size=3) == pytest.approx(expected)
    labels = np.where(mask[:, 1:] == 1, ids[:, 1:], -100)
    assert value({"perplexity": {"target": "t"}}, {"y": logits[:, :-1]}, [{"t": row} for row in labels]
                 ) == pytest.approx(expected)  # fmt: skip
    certain = np.where(np.arange(30) == np.roll(ids, -1, 1)[..., None], 1e4, 0.0)
    assert value({"perplexity": None}, {"y": certain}, feeds=feeds) == 1


# --- retrieval


def test_retrieval_by_labels_and_by_the_sources_own_neighbours() -> None:
    angles = np.deg2rad([0, 10, 90, 95, 180, 300])
    rows = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    groups = [0, 0, 1, 2, 1, 9]  # 0 and 1 find each other; 2 and 4 are second nearest; 3 and 5 are alone
    assert value({"retrieval": 1}, {"y": rows}, groups) == 0.5
    assert value({"retrieval": {"k": 2}}, {"y": rows}, groups) == pytest.approx(0.75)
    assert value({"retrieval": {"k": 5, "measure": "mrr"}}, {"y": rows}, groups) == pytest.approx(
        (1 + 1 + 1 / 4 + 1 / 2) / 4
    )  # a tie counts against
    assert value({"retrieval": 3}, {"y": np.ones((6, 2), np.float32)}, groups) == 0  # all alike: nothing is found
    measured = score({"retrieval": {"k": 2, "relevant": "source"}}, rows, rows[:, ::-1], None)
    assert (measured["source"], measured["value"]) == (1, 1)
    moved = rows.copy()
    moved[0] = -moved[0]
    measured = score({"retrieval": {"k": 2, "relevant": "source"}}, rows, moved, None)
    assert measured["value"] < 1
    assert measured["change"] == pytest.approx(1 - measured["value"])


def test_similarity_is_the_mean_cosine_to_the_sources_embeddings() -> None:
    rows = np.random.default_rng(0).normal(size=(120, 16)).astype(np.float32)
    other = rows + np.random.default_rng(1).normal(size=rows.shape).astype(np.float32) * 0.3
    measured = score({"similarity": {}}, rows, other * 7, None)
    expected = (rows * other).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(other, axis=1)
    assert measured["source"] == pytest.approx(1, abs=1e-12)
    assert measured["value"] == pytest.approx(expected.mean(), abs=1e-6)
    assert measured["interval"][0] < measured["value"] < measured["interval"][1] < 1
    assert score({"similarity": {}}, rows, np.zeros_like(rows), None)["value"] == 0  # a dead model is like nothing
    assert "embeddings of 8 numbers" in score({"similarity": {}}, rows, rows[:, :8], None)["problem"]


# --- scores, their intervals, and callables


def test_a_score_pairs_both_models() -> None:
    other = LOGITS + np.random.default_rng(1).normal(0, 0.3, LOGITS.shape)
    right, now = LOGITS.argmax(1) == LABELS, other.argmax(1) == LABELS
    made = score({"accuracy": {}}, LOGITS, other, list(LABELS))
    assert made["interval"] == [*wilson(int(now.sum()), 300)]
    assert made["change_interval"] == [*tango(int((right & ~now).sum()), int((now & ~right).sum()), 300)]
    f1 = score({"f1": "macro"}, LOGITS, other, list(LABELS))
    assert f1 == score({"f1": "macro"}, LOGITS, other, list(LABELS))
    assert f1["change"] == pytest.approx(f1["source"] - f1["value"], abs=1e-11)
    width = {key: f1[key][1] - f1[key][0] for key in ("interval", "change_interval")}
    assert width["change_interval"] < width["interval"], "pairing takes the samples' own spread out"
    assert (f1["samples"], f1["outputs"]) == (300, ["y"])
    wide = score({"f1": {"confidence": 0.99, "resamples": 300}}, LOGITS, other, list(LABELS))
    assert wide["interval"][1] - wide["interval"][0] > width["interval"]
    assert "300 resamples" in wide["method"]


def test_the_interval_of_f1_covers() -> None:
    """Two classes, one label a sample: F1 of the second is 2 * 0.24 / (0.24 + 0.10 + 0.06 + 0.24) = 0.75."""
    rng = np.random.default_rng(5)
    held, paired = 0, 0
    for seed in range(300):
        kind = rng.choice(4, 120, p=[0.24, 0.10, 0.06, 0.60])  # true and found, found only, true only, neither
        labels, found = np.isin(kind, [0, 2]).astype(int), np.isin(kind, [0, 1]).astype(int)
        scoring = Scoring([metric_of({"f1": {"average": "binary", "resamples": 200}})], Path(), seed)
        worse = np.where(rng.random(120) < 0.25, 1 - found, found)  # a quarter of the answers turned round
        scoring.add({}, list(labels), {"y": found}, {"y": worse}, 120)
        made = scoring.result(lambda text, fraction: None)["f1"]
        held += made["source_interval"][0] <= 0.75 <= made["source_interval"][1]
        true, said = 0.75 * 0.24 + 0.25 * 0.06, 0.75 * 0.34 + 0.25 * 0.66
        drop = 0.75 - 2 * true / (0.30 + said)
        paired += made["change_interval"][0] <= drop <= made["change_interval"][1]
    assert 270 <= held <= 297
    assert 270 <= paired <= 297


# --- what cannot be measured


@pytest.mark.parametrize(
    ("metric", "output", "labels", "what"),
    [
        ({"accuracy": {}}, np.zeros((4, 3)), None, "sample 0 has no label"),
        ({"accuracy": {}}, np.zeros((4, 3)), [0, 1, 2, 5], "sample 3 has the label 5, but output 'y' has 3 classes"),
        ({"accuracy": {}}, np.zeros((4, 3)), [0.0, 1, 2, 1.5], "labels are float64, not class numbers"),
        ({"accuracy": {}}, np.zeros((4, 3)), ["a", "b", "c", "d"], "sample 0: its label is no number"),
        ({"accuracy": {}}, np.zeros((4, 3)), [[1, 2], [1], [1], [1]], "labels differ in shape: (2,), (1,) at sample 1"),
        ({"accuracy": {}}, np.zeros((4, 3, 2)), [0, 1, 2, 1], "output 'y' has shape (4, 3, 2), which is not the"),
        ({"accuracy": {}}, np.zeros((4, 5, 5)), [[0] * 5] * 4, "any of axes [1, 2] could be the classes"),
        ({"accuracy": {}}, np.zeros(4), [0, 1, 1, 0], "has one float64 per label, neither class ids nor"),
        ({"accuracy": {"threshold": 0}}, np.zeros((4, 3)), [0, 1, 1, 0], "has shape (4, 3), the labels have (4,)"),
        ({"accuracy": {"output": "z"}}, np.zeros((4, 3)), [0, 1, 1, 0], "there is no output 'z'"),
        ({"accuracy": {}}, np.zeros((7, 3)), [0, 1, 1, 0], "axis 0 does not count the 4 samples"),
        ({"accuracy": {}}, np.zeros((4, 3)), [-1] * 4, "it has no value for the source model"),
        ({"f1": {"average": "binary", "positive": 2}}, np.zeros((4, 3)), [0, 1, 1, 0], "it has no value for"),
        ({"f1": {"average": "binary", "positive": 3}}, np.zeros((4, 3)), [0, 1, 1, 0], "has 3 classes, and no class 3"),
        ({"iou": {"class": 7}}, np.zeros((4, 3)), [0, 1, 1, 0], "has 3 classes, and no class 7"),
        ({"top_k": 3}, np.zeros((4, 3)), [0, 1, 1, 0], "every label is among the 3 best of 3 classes"),
        ({"map": "y"}, np.zeros((4, 3)), [0] * 4, "not (batch, detections, 6)"),
        ({"wer": "ids"}, np.zeros((4, 3, 2, 1)), [[1]] * 4, "neither token ids (tokens,) nor scores"),
        ({"wer": "ids"}, np.zeros((4, 3), int), ["a"] * 4, "its label is text, the predictions are token ids"),
        ({"wer": "text"}, np.zeros((4, 3)), ["a"] * 4, "is float64, not text"),
        ({"perplexity": {}}, np.zeros((4, 3)), None, "not scores (batch, tokens, vocabulary)"),
        ({"perplexity": {}}, np.zeros((4, 3, 9)), None, "the model has no input 'input_ids'"),
        ({"retrieval": 4}, np.zeros((4, 3)), [0] * 4, "4 neighbours of 4 samples are all there are"),
        ({"retrieval": 1}, np.zeros((4, 3)), [0, 1, 2, 3], "no sample shares its label with another"),
        ({"retrieval": 1}, np.zeros((4, 3, 2)), [0] * 4, "not one embedding per sample"),
        ({"similarity": {}}, np.zeros((4, 3, 2)), None, "not one embedding per sample"),
    ],
)  # fmt: skip
def test_what_the_source_cannot_feed_is_an_error(metric: Any, output: Any, labels: Any, what: str) -> None:
    scoring = Scoring([metric_of(metric)], Path(), 0)
    with pytest.raises(UserError) as caught:  # noqa: PT012
        scoring.add({}, labels, {"y": output}, {"y": output}, 4)
        scoring.result(lambda text, fraction: None)
    assert what in caught.value.what
    assert caught.value.hint
    assert caught.value.subject == f"metric.{metric_of(metric).name}"


def test_true_boxes_of_the_wrong_shape_are_an_error() -> None:
    outputs, labels = detections()
    labels[3] = {"boxes": np.zeros((2, 5)), "labels": [0, 1]}
    with pytest.raises(UserError, match=r"sample 3: true boxes have shape \(2, 5\), their class ids \(2,\)"):
        Scoring([metric_of({"map": MAP})], Path(), 0).add({}, labels, outputs, outputs, 25)


def test_what_the_artifact_alone_cannot_feed_is_its_problem() -> None:
    scoring = Scoring([metric_of({"accuracy": {"output": "y"}}), metric_of({"f1": "macro"})], Path(), 0)
    scoring.add({}, [0, 1], {"y": np.eye(2)}, {"z": np.eye(2)}, 2)
    made = scoring.result(lambda text, fraction: None)
    assert made["accuracy"]["problem"] == "there is no output 'y'"
    assert made["accuracy"]["outputs"] == ["y"]
    assert made["f1"]["value"] == 1


def test_a_missing_vocabulary_names_the_metric(tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text("[1]")
    with pytest.raises(UserError, match=r"metric wer: v.json is no vocabulary"):
        Scoring([metric_of({"wer": {"vocabulary": "v.json"}})], tmp_path, 0)
    with pytest.raises(DataError, match=r"metric wer: .*w.json does not exist"):
        metric_of({"wer": {"vocabulary": "w.json"}}).files(tmp_path)


def test_measuring_needs_no_torch() -> None:
    code = (
        "import sys, numpy as np\nfrom pathlib import Path\n"
        "from optkit.spec.metricspec import metric_of\nfrom optkit.scoring.measure import Scoring\n"
        "s = Scoring([metric_of({'accuracy': {}}), metric_of({'f1': 'macro'}), metric_of({'top_k': 1})], Path(), 0)\n"
        "s.add({}, [0, 1, 1], {'y': np.eye(3)}, {'y': np.eye(3)}, 3)\n"
        "print(round(s.result(lambda t, f: None)['accuracy']['value'], 3), 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["0.667", "False"]
