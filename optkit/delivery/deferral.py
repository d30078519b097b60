"""A check that this machine cannot make: what goes with the artifact, so that another machine can give the verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.artifact import Signature, TensorSpec
from optkit.errors import NotHereError
from optkit.parity.cases import Case, feeds

if TYPE_CHECKING:
    from collections.abc import Callable

    from optkit.data import Dataset
    from optkit.parity.tape import Reference
    from optkit.plugin import Tensors
    from optkit.spec.metricspec import Metric

LIMIT_BYTES = 64 << 20
"""No further samples of a case are kept once it holds this much: they travel with every copy of the artifact."""


def put_off(
    error: NotHereError, source: Reference, cases: Sequence[Case], dataset: Dataset, inputs: Sequence[TensorSpec],
    out: Path, stacked: bool,
) -> dict[str, Any]:  # fmt: skip
    """Write `out`/vectors.npz, all that the check would have fed and what the source model answers to it.

    Members are CASE/BATCH/input/NAME, CASE/BATCH/source/NAME, CASE/BATCH/count (how many of its rows are samples, and 1
    where axis 0 counts samples at all) and CASE/BATCH/labels, or labels_json where they make no array.
    Returns the result of a check that was not made; the artifact is not run.
    """
    import numpy as np

    from optkit.data.batch import stack_labels

    arrays: dict[str, Any] = {}
    for number, case in enumerate(cases):
        kept = 0
        for position, (tensors, count, labels) in enumerate(feeds(case, dataset, inputs)):
            if kept >= LIMIT_BYTES:
                break
            place = f"{number}/{position}"
            for group, named in (("input", tensors), ("source", source.outputs(number, position, tensors))):
                arrays |= {f"{place}/{group}/{name}": tensor for name, tensor in named.items()}
                kept += sum(tensor.nbytes for tensor in named.values())
            arrays[f"{place}/count"] = np.array([count, stacked])
            stacked_labels = stack_labels(labels)
            if stacked_labels is not None and stacked_labels.dtype.kind != "O":
                arrays[f"{place}/labels"] = stacked_labels
            elif labels is not None:
                text = json.dumps(labels, default=lambda value: value.tolist()).encode()
                arrays[f"{place}/labels_json"] = np.frombuffer(text, np.uint8)
                kept += len(text)
    np.savez_compressed(out / "vectors.npz", **arrays)
    return {"cases": [], "provider": None, "deferred": error.to_json()}


def make_up(
    infer: Callable[[Tensors], Tensors], vectors: Path, cases: Sequence[Mapping[str, Any]],
    metrics: Sequence[Metric] = (),
) -> list[dict[str, Any]]:  # fmt: skip
    """The metrics of a deferred check's cases, from the vectors that `put_off` wrote and a model that runs here.

    metrics: the declared task metrics. One that needs a file of the recipe's has a problem instead of a value: the file
    is not part of a delivery.
    """
    import numpy as np

    from optkit.parity.metrics import Comparison
    from optkit.running.judging import with_scores
    from optkit.scoring.measure import Scoring

    results = []
    away = {metric.name: metric.needs for metric in metrics if metric.needs}
    scoring = Scoring([metric for metric in metrics if not metric.needs], Path(), 0)
    with np.load(vectors, allow_pickle=False) as stored:
        members: dict[tuple[int, int], dict[str, Any]] = {}
        for name in stored.files:
            number, position, rest = name.split("/", 2)
            members.setdefault((int(number), int(position)), {})[rest] = name
        for number, case in enumerate(cases):
            comparison, total = Comparison(), 0
            for place in sorted(p for p in members if p[0] == number):
                found = {rest: stored[name] for rest, name in members[place].items()}
                tensors, expected = (
                    {n.removeprefix(group): t for n, t in found.items() if n.startswith(group)}
                    for group in ("input/", "source/")
                )
                count, stacked = found["count"].tolist()
                rows = _rows(tensors) if stacked else -1
                answer = _first(infer(tensors), count, rows)
                expected, labels = _first(expected, count, rows), found.get("labels")
                comparison.add(expected, answer, count if stacked else None, labels)
                if case["kind"] == "samples":
                    told = list(labels) if labels is not None else None
                    if "labels_json" in found:
                        told = json.loads(found["labels_json"].tobytes())
                    scoring.add(_first(tensors, count, rows), told, expected, answer, count)
                total += count
            results.append({**case, "samples": total, "source": comparison.result()})
    scores: dict[str, Any] = scoring.result(lambda text, fraction: None) if metrics else {}
    for name, file in away.items():
        scores[name] = {"problem": f"it needs {file}, which is not part of the delivery", "outputs": []}
    return [dict(case) for case in with_scores(results, scores)]


def first_verdicts(
    cases: Sequence[Mapping[str, Any]], record: Mapping[str, Any], signature: Signature | None
) -> list[dict[str, Any]]:
    """The verdicts that a deferred check left to this machine, by its step's own bounds and the source's own noise.

    cases: as `make_up` gives them. record: the delivery's optkit.json.
    """
    from optkit.parity.bounds import parse_bound
    from optkit.planning import Check
    from optkit.running.judging import judge_cases
    from optkit.spec.metricspec import bound_table, metrics_of

    check = record["check"]
    table = bound_table(metrics_of(check))
    bounds = tuple(parse_bound(text, table) for text in check["bounds"])
    stated = Check(bounds, check["precision"], check["lossy"], tuple(check["stated_by"]))
    return judge_cases(cases, stated, record["provenance"]["source"]["noise"], signature)


def _rows(tensors: Tensors) -> int:
    first = next(iter(tensors.values()))
    return int(first.shape[0]) if first.ndim else 1


def _first(tensors: Tensors, count: int, rows: int) -> Tensors:
    return {name: t[:count] if t.ndim and t.shape[0] == rows else t for name, t in tensors.items()}


def beside(ancestors: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The nearest ancestor that did run here, and its verdict; None where none did. `ancestors`: the source's first."""
    for step in reversed(ancestors):
        check = step.get("check") or {}
        if check.get("cases"):
            return {"step": step["id"], "status": step["status"], "provider": check["provider"]}
    return None
