"""Parity of models that are already there: any two compared, a delivered one proven again."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optkit.artifact import Artifact, digest_file, digest_of
from optkit.cache import Cache
from optkit.caching import keys
from optkit.delivery.deferral import first_verdicts
from optkit.errors import UserError
from optkit.live.livedata import Data, dataset_entry
from optkit.models.asking import ask, side_at
from optkit.models.common_inputs import Side, common_inputs
from optkit.models.opened import Ranges, beside, delivered, ranges_of, read_record
from optkit.parity.bounds import Bound, BoundError, parse_bound
from optkit.parity.cases import make_cases
from optkit.planning import Check
from optkit.running import blaming
from optkit.running.judging import judge_case, judge_cases
from optkit.running.pool import Pool
from optkit.spec.metricspec import bound_table, metrics_of


def compare(
    a: str | Path,
    b: str | Path,
    *,
    data: Data | None = None,
    bounds: Sequence[str] = (),
    inputs: Mapping[str, Mapping[str, Any]] | None = None,
    dims: Ranges | None = None,
    device: str = "cpu",
    threads: int | None = None,
    layers: bool = False,
) -> dict[str, Any]:
    """Parity of model `b` with model `a`, each a file, a delivered folder or a callable, over its data and dims.

    data: as `optkit.convert` takes it; None is random inputs, and then `synthetic` is true. dims: the sizes to check
    over; a delivered folder brings its own, any other dim is visited at 1 to 4. Where one model is fixed at a size,
    both are compared at that, and `notes` say so. Without `bounds` those of a faithful float32 conversion apply.
    layers: also look for the layer of `b` that makes the difference, on the worst samples.

    Returns {"a", "b", "cases": [...], "held", "provider", "synthetic", "notes", "inputs", "dims", "blame"}; a case has
    the metrics ("source"), verdicts and `held`; `blame` is as a report's step has it, or None. Raises UserError for
    models that take different inputs.
    """
    stated = tuple(_bound(text) for text in bounds)
    asked = ranges_of(dims)
    inputs, tried = beside((str(a), str(b)), inputs, asked)
    with tempfile.TemporaryDirectory(prefix="optkit-check-") as temporary:
        work = Path(temporary)
        sides: list[Side] = []
        section: dict[str, Any] = {}
        common: dict[str, Any] = {
            "base": str(Path.cwd()), "seed": 0, "device": device, "threads": threads or keys.cores(), "outputs": [],
        }  # fmt: skip
        with Pool(1, work / "logs") as pool:
            for ref in (str(a), str(b)):
                side, model = side_at(ref, inputs, tried, pool, work, common)
                section = section or model
                sides.append(side)
            first, second = (artifact for artifact, _ in sides)
            chosen, sizes, fixed = common_inputs(sides[0], sides[1], asked)
            entry = dataset_entry(data, "judge", Cache(work / "cache"), section, lambda: chosen)
            (out := work / "out").mkdir()
            common |= {"inputs": [t.to_json() for t in chosen], "dims": keys.dims_json(sizes),
                       "datasets": {"judge": entry}, "check_on": "judge", "out": str(out)}  # fmt: skip
            done = ask(pool, {
                **common, "task": "check", "artifact": second.to_json(),
                "cases": [c.to_json() for c in make_cases(chosen, sizes)],
                "references": {"source": {"artifact": first.to_json(), "tape": str(work / "tape")}},
            }, work)  # fmt: skip
            check = Check(stated, "float32", lossy=bool(stated), stated_by=tuple("--bound" for _ in stated))
            judged = judge_cases(done["cases"], check, None, second.signature)
            blame = None
            if layers and judged:
                case, samples = blaming.failing(judged) or (judged[0], blaming.worst_samples(judged[0]))
                order = blaming.task(case, samples, second, [(str(a), first)], "judge")
                blame = ask(pool, {**common, **order}, work)["blame"]
    return {
        "a": str(a),
        "b": str(b),
        "cases": judged,
        "held": bool(judged) and all(c["held"] for c in judged),
        "provider": done["provider"],
        "synthetic": "random" in entry,
        "notes": [f"compared at {name}={size} alone: one of the models is fixed there" for name, size in fixed.items()],
        "inputs": [t.to_json() for t in chosen],
        "dims": keys.dims_json(sizes),
        "blame": blame,
    }


def _bound(text: str) -> Bound:
    try:
        return parse_bound(text)
    except BoundError as error:
        raise UserError(f"bounds: {error}", hint=error.hint) from None


# ------------------------------------------------------------------------------------------------ deliveries


def verify(folder: str | Path, *, device: str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """A delivered artifact proven again: its files' digests, and its answers to the test vectors that lie beside it.

    One whose check was deferred is proven here for the first time, on every case and by the bounds of its step.

    Returns {"artifact", "format", "held", "problems": [text], "cases": [...], "provider"}. What was delivered without a
    check cannot be proven, and so does not hold. Raises UserError for a folder that is no delivery, UnavailableError
    when its runtime is not on this machine.
    """
    folder = Path(folder)
    artifact, record = delivered(folder), read_record(folder)
    problems = _differences(folder, record)
    cases: list[dict[str, Any]] = []
    provider = None
    if not problems and not record["vectors"]:
        waived = (record["check"] or {}).get("waived")
        problems.append(
            "it was delivered without test vectors" + (f", for its check was waived: {waived}" if waived else "")
        )
    elif not problems:
        deferred = record.get("deferred") or {}
        with tempfile.TemporaryDirectory(prefix="optkit-verify-") as work, Pool(1, Path(work) / "logs") as pool:
            done = ask(pool, {
                "task": "verify", "artifact": artifact.to_json(),
                "vectors": str((folder / record["vectors"]).absolute()), "device": device,
                "threads": threads or keys.cores(), "deferred": deferred.get("cases"),
                "metrics": (record["check"] or {}).get("metrics", []),
            }, Path(work))  # fmt: skip
        provider = done["provider"]
        if deferred:
            cases = first_verdicts(done["cases"], record, artifact.signature)
        else:
            cases = [judged for case in done["cases"] for judged in _proven_again(case, record, artifact)]
    return {
        "artifact": str(folder),
        "format": artifact.format,
        "problems": problems,
        "cases": cases,
        "provider": provider,
        "held": not problems and bool(cases) and all(c["held"] for c in cases),
    }


def _differences(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """What in a delivered folder is not as it was delivered."""
    problems = []
    rest = {key: value for key, value in record.items() if key != "sha256"}
    if record.get("sha256") != digest_of(rest):
        problems.append("optkit.json is not the record that was delivered: its sha256 differs")
    for name, was in record["files"].items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif digest_file(path) != was.get("sha256"):
            problems.append(f"{name} is not the file that was delivered: its sha256 differs")
    return problems


def _proven_again(case: Mapping[str, Any], record: Mapping[str, Any], artifact: Artifact) -> list[dict[str, Any]]:
    """Two verdicts: against its own recorded answers (another machine's rounding allowed), and the source's."""
    before = record["check"]
    own = judge_case(
        {**case, "name": "against its own recorded answers", "source": case["itself"]},
        Check((), before["precision"], lossy=False, stated_by=()),
        None,
        artifact.signature,
    )
    samples = next((c for c in before["cases"] if c["kind"] == "samples"), None)
    texts = dict.fromkeys(v["bound"] for v in (samples or {"verdicts": []})["verdicts"] if v["bound"])
    # What is counted over the judging set (agreement, accuracy) cannot be told from a few vectors.
    table = bound_table(metrics_of(before))
    per_sample = [bound for text in texts if (bound := parse_bound(text, table)).info.aggregate == "worst"]
    if not per_sample:
        return [own]
    source = judge_case(
        {**case, "name": "against the source model's answers"},
        Check(tuple(per_sample), before["precision"], lossy=False, stated_by=tuple("" for _ in per_sample)),
        None,
        artifact.signature,
    )
    return [own, source]
