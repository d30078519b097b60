"""Which layer made a step's check fail: the samples to look at, the ancestor to compare with, and what is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from optkit.artifact import Artifact, TensorSpec
from optkit.errors import OptkitError, StepError
from optkit.models.signatures import adapted
from optkit.parity.cases import Case, batch_dim, feeds, stacks
from optkit.registry import get_runner
from optkit.reports.layers import sentence

if TYPE_CHECKING:
    from optkit.data import Dataset
    from optkit.plugin import Tensors

Data = Mapping[str, Any]

SECONDS = 60.0
"""After which no further tensors are compared."""

LIMIT_SECONDS = 240.0
"""After which the process that compares them is ended."""

SAMPLES = 3


def failing(cases: Sequence[Data]) -> tuple[Data, list[int]] | None:
    """The case to look into, and its worst samples, worst first; None where all hold. Real samples come first."""
    bad = [case for case in cases if not case["held"]]
    case = next((c for c in bad if c["kind"] == "samples"), bad[0] if bad else None)
    return (case, worst_samples(case)) if case is not None else None


def worst_samples(case: Data) -> list[int]:
    """A case's worst samples: those with a problem, those that break a bound, those farthest off."""
    told = [problem.get("sample") for problem in case["source"]["problems"]]
    told += [v["worst_sample"] for v in case["verdicts"] if not v["held"]]
    told += [output.get(name, {}).get("worst_sample") for output in case["source"]["outputs"].values()
             for name in ("rel_l2", "cosine", "mismatch")]  # fmt: skip
    return [s for s in dict.fromkeys(told) if s is not None][:SAMPLES] or [0]


def task(case: Data, samples: Sequence[int], artifact: Artifact, chain: Sequence[tuple[str, Artifact]],
         check_on: str) -> dict[str, Any]:  # fmt: skip
    """What a worker is asked. chain: what the artifact was made from, with its name, the nearest first."""
    return {
        "task": "blame", "artifact": artifact.to_json(), "check_on": check_on, "seconds": SECONDS,
        "chain": [[name, ancestor.to_json()] for name, ancestor in chain],
        "case": {key: case[key] for key in ("name", "kind", "sizes")}, "samples": list(samples),
    }  # fmt: skip


def untold(why: str) -> dict[str, Any]:
    """A result that names no layer, and why."""
    return {"against": None, "case": "", "samples": [], "blamed": None, "text": why, "problem": why, "layers": [],
            "worst": [], "compared": 0, "tensors": 0, "output_db": None, "notes": []}  # fmt: skip


def localised(step: Data, dataset: Dataset, say: Callable[[str, float | None], None]) -> dict[str, Any]:
    """The layer to blame, by the nearest ancestor with which the artifact has inner tensors in common."""
    artifact = Artifact.from_json(step["artifact"])
    chain = [(name, Artifact.from_json(data)) for name, data in step["chain"]]
    looks = get_runner(artifact.format).inside
    if not looks:
        return untold(f"{artifact.format} artifacts cannot be looked into")
    inputs = [TensorSpec.from_json(t) for t in step["inputs"]]
    fed = list(_feeds(step, dataset, inputs))
    notes: list[str] = []
    with ExitStack() as stack:
        try:
            mine = stack.enter_context(looks[0](artifact, threads=step["threads"]))
        except OptkitError as error:
            return untold(f"it cannot be looked into: {error.what}")
        for number, (name, ancestor) in enumerate(chain):
            try:
                found = _beside(ancestor, artifact, mine, fed, step, _modules(chain[number + 1 :]), say)
            except OptkitError as error:
                notes.append(f"not compared with {name}: {error.what}")
                continue
            if found is None:
                notes.append(f"no common tensors with {name}")
                continue
            found["notes"] = [*notes, *found["notes"]]
            shown = {"against": name, "case": step["case"]["name"], "samples": step["samples"], **found, "problem": ""}
            return {**shown, "text": sentence(shown)}
    return untold("; ".join(notes) or "there is nothing to compare it with")


def _beside(
    ancestor: Artifact, artifact: Artifact, mine: Any, fed: Sequence[Tensors], step: Data, modules: Mapping[str, str],
    say: Callable[[str, float | None], None],
) -> dict[str, Any] | None:  # fmt: skip
    from optkit.parity.layers import localise

    one, two = ancestor.signature, artifact.signature
    assert one is not None
    assert two is not None
    outputs = [t.name for t in two.outputs if t.name in {o.name for o in one.outputs}]
    if not outputs:
        raise StepError("they have no output in common")
    pairs = [(adapted(tensors, one), adapted(tensors, two)) for tensors in fed]
    ranged = replace(ancestor, meta={**ancestor.meta, "dims": step["dims"]})
    for look in get_runner(ancestor.format).inside:
        with look(ranged, threads=step["threads"]) as theirs:
            found = localise(theirs, mine, pairs, outputs, seconds=step["seconds"], modules=modules, say=say)
        if found is not None:
            return found
    return None


def _modules(older: Sequence[tuple[str, Artifact]]) -> dict[str, str]:
    """Torch modules by tensor, from ancestors whose files still tell them; the nearest has the say."""
    from optkit.parity.tensors import modules_in

    found: dict[str, str] = {}
    for _, ancestor in older:
        for look in get_runner(ancestor.format).inside if ancestor.format in ("onnx", "openvino") else ():
            with suppress(OptkitError), look(ancestor) as model:  # names are a nicety
                found = {**modules_in(model.points), **found}
    return found


def _feeds(step: Data, dataset: Dataset, inputs: Sequence[TensorSpec]) -> Iterator[Tensors]:
    """The feeds of the worst samples: each alone where the model takes one alone, else the batch that it is in."""
    case, wanted = Case.from_json(step["case"]), set(step["samples"])
    batch, stacked = batch_dim(inputs), stacks(dataset, inputs)
    alone = stacked and batch is not None and step["dims"][batch]["min"] == 1
    if case.kind != "samples":
        for tensors, _, _ in feeds(case, dataset, inputs):
            yield tensors
        return
    start = 0
    for tensors, count, _ in feeds(case, dataset, inputs):
        here = sorted(sample - start for sample in wanted if start <= sample < start + count)
        start += count
        if here and not alone:
            yield tensors
        for row in here if alone else ():
            yield {name: tensor[row : row + 1] for name, tensor in tensors.items()}
        if start > max(wanted):
            return
