"""An artifact measured against others, its layers too, for `optkit.running.checking` and `optkit verify`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.artifact import Artifact, TensorSpec
from optkit.delivery.deferral import make_up, put_off
from optkit.errors import NotHereError
from optkit.models.signatures import adapted
from optkit.parity.cases import Case, batch_dim, feeds, stacks
from optkit.parity.tape import Reference, Tape
from optkit.spec.metricspec import metric_of
from optkit.tasks.common import Data, Say, dataset_of, first_rows, session_of

if TYPE_CHECKING:
    from optkit.plugin import Tensors


VECTORS = 4
"""Samples kept as test vectors beside a delivered artifact."""


def check(step: Data, say: Say) -> Data:
    """The metrics of an artifact against the source and its parent, over every case; verdicts are made elsewhere.

    `metrics` are the task metrics to measure beside them, into `scores`; `scores_only` leaves the rest out.

    Where the artifact is made for another machine: with `defer`, what that machine needs to make this check, and in
    `deferred` why; else NotHereError.
    """
    import numpy as np

    from optkit.data.batch import stack_labels
    from optkit.parity.metrics import Comparison
    from optkit.scoring.measure import Scoring

    artifact = Artifact.from_json(step["artifact"])
    assert artifact.signature is not None
    dataset = dataset_of(step, step["check_on"])
    scoring = Scoring([metric_of(entry) for entry in step.get("metrics", ())], Path(step["base"]), step["seed"])
    cases = [Case.from_json(c) for c in step["cases"]]
    inputs = [TensorSpec.from_json(t) for t in step["inputs"]]
    stacked, batch = stacks(dataset, inputs), batch_dim(inputs)
    single = stacked and batch is not None and step["dims"][batch]["min"] == 1  # one row alone is a feed
    out = Path(step["out"])
    own = Tape(Path(step["tape"])) if step.get("tape") else None
    vectors: list[tuple[Tensors, Tensors, Tensors]] = []
    results = []
    with ExitStack() as stack:
        references = {role: stack.enter_context(_reference(step, ref)) for role, ref in step["references"].items()}
        try:
            session = stack.enter_context(session_of(step, artifact))
        except NotHereError as error:
            if not step.get("defer"):
                raise
            return put_off(error, references["source"], cases, dataset, inputs, out, stacked)
        for number, case in enumerate(cases):
            compared = {role: Comparison() for role in references}
            total = 0
            for position, (tensors, count, labels) in enumerate(feeds(case, dataset, inputs)):
                answer = session.infer(adapted(tensors, artifact.signature))
                if own:
                    own.write(number, position, answer)
                rows = _rows(tensors) if stacked else -1
                own_rows = first_rows(answer, count, rows)
                for role, reference in references.items():
                    expected = reference.outputs(number, position, tensors)
                    expected_rows = first_rows(expected, count, rows)
                    if role == "source" and case.kind == "samples":
                        scoring.add(first_rows(tensors, count, rows), labels, expected_rows, own_rows, count)
                    if step.get("scores_only"):
                        continue
                    known = stack_labels(labels) if role == "source" else None
                    compared[role].add(expected_rows, own_rows, count if stacked else None, labels=known)
                    if role == "source" and case.kind == "samples" and len(vectors) < VECTORS:
                        left = VECTORS - len(vectors)
                        whole = [(tensors, answer, expected)]
                        vectors += _rows_of(tensors, answer, expected, count, left) if single else whole
                total += count
                say(f"checking, {case.name}", (number + min(1.0, total / max(1, len(dataset)))) / len(cases))
            results.append({**case.to_json(), "samples": total, **{role: c.result() for role, c in compared.items()}})
        if single:  # alone, as `verify` feeds them: dynamic quantisation answers a sample by the batch it is in
            vectors = [(given, session.infer(adapted(given, artifact.signature)), said) for given, _, said in vectors]
        provider = session.provider
    scores = scoring.result(say)
    if vectors:
        arrays = {}
        for group, part in (("input", 0), ("output", 1), ("source", 2)):
            for row, row_tensors in enumerate(v[part] for v in vectors):
                arrays.update({f"{row}/{group}/{name}": tensor for name, tensor in row_tensors.items()})
        np.savez_compressed(out / "vectors.npz", **arrays)  # type: ignore[arg-type]
    return {"cases": results, "provider": provider, "scores": scores}


def _rows(tensors: Tensors) -> int:
    first = next(iter(tensors.values()))
    return int(first.shape[0]) if first.ndim else 1


def _rows_of(tensors: Tensors, answer: Tensors, expected: Tensors, count: int, limit: int) -> list[Any]:
    """Single samples, each still with its batch axis, of a batch of inputs and two sets of outputs."""

    def cut(group: Tensors, row: int) -> Tensors:
        return {n: t[row : row + 1] if t.ndim and t.shape[0] == rows else t for n, t in group.items()}

    rows = _rows(tensors)
    if any(not t.ndim or t.shape[0] != rows for group in (tensors, answer, expected) for t in group.values()):
        return [(tensors, answer, expected)][:limit]
    return [(cut(tensors, r), cut(answer, r), cut(expected, r)) for r in range(min(count, limit))]


def _reference(step: Data, ref: Data) -> Reference:
    artifact = Artifact.from_json(ref["artifact"])
    signature = artifact.signature
    assert signature is not None
    return Reference(
        Tape(Path(ref["tape"])), lambda: session_of(step, artifact), lambda tensors: adapted(tensors, signature)
    )


def verify(step: Data, say: Say) -> Data:
    """A delivered artifact run on its own test vectors: metrics against its recorded answers and the source's.

    One whose check was deferred has no answers yet: it gets the whole check instead, of the cases in `deferred`.
    """
    import numpy as np

    from optkit.parity.metrics import Comparison

    artifact = Artifact.from_json(step["artifact"])
    signature = artifact.signature
    assert signature is not None
    if step.get("deferred"):
        with session_of(step, artifact) as session:
            results = make_up(
                lambda t: session.infer(adapted(t, signature)), Path(step["vectors"]), step["deferred"],
                [metric_of(entry) for entry in step.get("metrics", ())],
            )  # fmt: skip
            return {"cases": results, "provider": session.provider}
    compared = {"itself": Comparison(), "source": Comparison()}
    with np.load(step["vectors"], allow_pickle=False) as stored:
        rows = sorted({name.split("/", 1)[0] for name in stored.files}, key=int)
        with session_of(step, artifact) as session:
            for row in rows:
                group = {
                    g: {n.split("/", 2)[2]: stored[n] for n in stored.files if n.startswith(f"{row}/{g}/")}
                    for g in ("input", "output", "source")
                }
                answer = session.infer(adapted(group["input"], signature))
                compared["itself"].add(group["output"], answer, None)
                compared["source"].add(group["source"], answer, None)
            provider = session.provider
    return {
        "cases": [
            {
                "name": "test vectors",
                "kind": "samples",
                "sizes": {},
                "samples": len(rows),
                **{role: c.result() for role, c in compared.items()},
            }
        ],
        "provider": provider,
    }


def blame(step: Data, say: Say) -> Data:
    """Which layer an artifact goes wrong at, beside the nearest of its `chain`, on the worst samples of a case."""
    from optkit.running.blaming import localised

    return {"blame": localised(step, dataset_of(step, step["check_on"]), say)}
