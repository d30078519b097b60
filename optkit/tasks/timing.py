"""Artifacts raced: `optkit.running.timing` asks for this, and `optkit bench`."""

from __future__ import annotations

from pathlib import Path

from optkit.artifact import TensorSpec
from optkit.parity.cases import Case, batch_dim, feeds, fixed_batch
from optkit.parity.tape import Tape
from optkit.tasks.common import Data, Say, dataset_of

RACE_FEEDS = 4
"""Batches of real samples that the artifacts of a race take turns on."""


def race(step: Data, say: Say) -> Data:
    """The speed of artifacts beside the first one, on real samples at the case's sizes, each in its own process.

    starts, rough: in how many processes each is opened and raced, and whether one may do. pairs: entrants whose answers
    are compared with another's: the same file under other settings.
    """
    from optkit.running.racing import STARTS
    from optkit.speed.race import race as run_race

    dataset = dataset_of(step, step["check_on"])
    inputs = [TensorSpec.from_json(t) for t in step["inputs"]]
    case = Case.from_json(step["case"])
    folder = Path(step["out"])
    tape = Tape(folder / "feeds")
    for number, (tensors, _, _) in zip(range(RACE_FEEDS), feeds(case, dataset, inputs), strict=False):
        tape.write(0, number, tensors)
    orders = {
        name: {"artifact": artifact, "feeds": str(tape.folder), "device": step["device"], "threads": step["threads"]}
        for name, artifact in step["artifacts"].items()
    }
    pairs: dict[str, str] = step.get("pairs", {})
    for number, name in enumerate(dict.fromkeys([*pairs.values(), *pairs])):
        orders[name]["answers"] = str(folder / f"answers-{number}")
    found = run_race(orders, folder, step["seconds"], step["seed"], say, step.get("starts", STARTS),
                     step.get("rough", False))  # fmt: skip
    entrants = {
        name: {"provider": e.provider, "latency_ms": e.latency_ms(), "open_seconds": e.open_seconds,
               "first_seconds": e.first_seconds, "ratio": ratio.to_json() if ratio else None,
               "peak_bytes": e.peak_bytes, "bare_bytes": e.bare_bytes, "wobble": e.wobble,
               "inferences": len(e.every), "mean_ms": sum(e.every) / len(e.every) * 1e3, "parity": None}
        for name, (e, ratio) in found.items()
    }  # fmt: skip
    for name, other in pairs.items():
        entrants[name]["parity"] = _beside(other, orders[other]["answers"], orders[name]["answers"])
    batch = batch_dim(inputs)
    samples = case.sizes[batch] if batch else fixed_batch(inputs)
    return {"entrants": entrants, "sizes": dict(case.sizes), "threads": step["threads"], "samples": samples}


def _beside(other: str, expected: str, got: str) -> Data:
    """How far the answers on one tape are from those on another."""
    from optkit.parity.bounds import EQUAL_DB
    from optkit.parity.metrics import Comparison
    from optkit.reports.rows import worst

    one, two, comparison = Tape(Path(expected)), Tape(Path(got)), Comparison()
    number = 0
    while (said := one.read(0, number)) is not None and (answer := two.read(0, number)) is not None:
        comparison.add(said, answer, None)
        number += 1
    result = comparison.result()
    found = {name: m for name, m in worst(result).items() if name in ("cosine", "sqnr_db", "mismatch")}
    equal = bool(number) and found.get("sqnr_db", EQUAL_DB) >= EQUAL_DB and not found.get("mismatch")
    return {"against": other, "equal": equal and not result["problems"], **found,
            "problems": [problem["text"] for problem in result["problems"]]}  # fmt: skip
