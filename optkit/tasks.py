"""What a worker can be asked to do. Each task takes its step.json as data and returns JSON data.

Common keys: `artifact` (what it works on), `inputs`, `outputs`, `dims`, `datasets` and `base` (specs, and the folder
their paths start from), `seed`, `threads`, `device`, `out` (an empty folder for files).
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.artifact import Artifact, Dim, TensorSpec, digest_file, digest_of
from optkit.cache import lock_folder, unlock_folder
from optkit.deferral import make_up, put_off
from optkit.errors import DataError, NotHereError, SourceError, StepError, UnavailableError
from optkit.metricspec import metric_of
from optkit.named import named_files
from optkit.parity.cases import Case, batch_dim, feeds, fixed_batch, stacks
from optkit.parity.tape import Reference, Tape
from optkit.plugin import Context, Pass, Runner, Session
from optkit.registry import get_pass, get_runner
from optkit.sharing import Shared
from optkit.signatures import adapted, carried, merge, promised

if TYPE_CHECKING:
    from optkit.data import Dataset
    from optkit.plugin import Tensors

Say = Callable[[str, "float | None"], None]
Data = dict[str, Any]

NOISE_SAMPLES = 16
"""Samples on which the source's own rounding error, float32 against float64, is measured."""

VECTORS = 4
"""Samples kept as test vectors beside a delivered artifact."""


def warm(step: Data, say: Say) -> Data:
    """Import modules ahead of the tasks that need them. A module that fails to import is left to its own task."""
    for name in step["modules"]:
        try:
            importlib.import_module(name)
        except Exception:  # reported, with a remedy, by the step that needs it
            continue
    return {}


def source(step: Data, say: Say) -> Data:
    """The source model's signature, with what the recipe declared checked against it and merged in."""
    artifact = Artifact.from_json(step["artifact"])
    found = get_runner(artifact.format).describe(artifact.path, {**artifact.meta, "dims": step["dims"]})
    declared = tuple(TensorSpec.from_json(t) for t in step["inputs"])
    return {"signature": merge(declared, found, step["outputs"]).to_json()}


def data(step: Data, say: Say) -> Data:
    """Every dataset read once: counts and digests; fitting sets must share no sample with the judging set."""
    from optkit.data import overlap

    found = {}
    for name in step["datasets"]:
        say(f"reading {name}", None)
        dataset = _dataset(step, name)
        found[name] = {
            "samples": len(dataset),
            "digest": dataset.digest(),
            "synthetic": dataset.synthetic,
            "preprocessing": dataset.preprocessing,
        }
    judge = _dataset(step, step["check_on"])
    for name, users in step["fitted"].items():
        pairs = overlap(_dataset(step, name), judge)
        if pairs:
            mine, theirs = pairs[0]
            raise DataError(
                f"{len(pairs)} samples of {name!r} are also in {step['check_on']!r}, which judges what is fitted on it "
                f"({', '.join(users)}); the first is number {mine}, number {theirs} there",
                subject=f"data.{name}",
                hint="take the shared samples out of one of them",
                code="OPK-231",
            )
    return {"datasets": found}


def run(step: Data, say: Say) -> Data:
    """One pass: its output artifact, re-read and compared with what was promised."""
    use = get_pass(step["pass"])
    options = use.options.model_validate(step["options"])
    parent = Artifact.from_json(step["artifact"])
    out = Path(step["out"])
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="optkit-", dir=step.get("scratch")))
        kept = stack.enter_context(_held(Path(step["kept"]) if step.get("kept") else None, Path(scratch)))
        context = replace(
            _context(step, Path(scratch), say), kept=kept, files=named_files(use, options, Path(step["base"])),
            source=Artifact.from_json(step["source"]) if step.get("source") else None,
            shared=Shared(step["shared"], say) if step.get("shared") else None,
        )  # fmt: skip
        if (tried := use.tries(options)) is not None:
            from optkit.trials import Trials

            context = replace(context, trial=Trials(use, parent, tried, context))
        before = _stamps(parent)
        notes: object = use.run(parent, out, options, context)
        if not isinstance(notes, Mapping):
            what = f"{use.name} returned a {type(notes).__name__}, not notes"
            raise StepError(what, hint="this is a bug in the pass: it must return a mapping, which may be empty")
        if _stamps(parent) != before:
            raise StepError(f"{use.name} changed its input, {parent.path.name}", hint="this is a bug in the pass")
        artifact = reread(use, parent, out, context)
        complaints = promised(use, parent, artifact)
        if use.confirm is not None:
            complaints += list(use.confirm(parent, artifact, options, context))
    if complaints:
        raise StepError(
            f"{use.name} finished, but what it wrote is not what was asked for: {complaints[0]}"
            + (f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""),
            details="\n".join(complaints),
            hint=f"optkit passes {use.name} lists the options",
            code="OPK-303",
        )
    return {
        "artifact": artifact.to_json(),
        "notes": dict(notes),
        "digests": {name: digest_file(out / name) for name in artifact.files},
    }


@contextmanager
def _held(kept: Path | None, scratch: Path) -> Iterator[Path | None]:
    """The folder of a step's checkpoints, for this process alone: one that has it already works without them."""
    if kept is None or not kept.is_dir():  # repeated after the step had succeeded
        yield None if kept is None else _made(scratch / "kept")
        return
    lock = lock_folder(kept)
    try:
        yield kept if lock is not None else _made(scratch / "kept")
    finally:
        unlock_folder(lock)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _stamps(artifact: Artifact) -> list[tuple[str, int, int]]:
    """Size and time of every file of an artifact: what changes when one is written to."""
    stats = [(name, (artifact.path.parent / name).stat()) for name in artifact.files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def reread(use: Pass, parent: Artifact, out: Path, context: Context, runner: Runner | None = None) -> Artifact:
    """The artifact in `out`, described from its files by the format's runner. Raises StepError when there is none."""
    runner = runner or get_runner(use.target)
    path = out / runner.main
    if not path.is_file():
        left = ", ".join(sorted(p.name for p in out.iterdir())) or "nothing"
        raise StepError(
            f"{use.name} returned without writing {runner.main}; it left {left}", hint="this is a bug in the pass"
        )
    if links := [p.name for p in out.rglob("*") if p.is_symlink()]:
        raise StepError(f"{use.name} wrote a link, {links[0]}, instead of a file", hint="this is a bug in the pass")
    files = tuple(sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()))
    meta: dict[str, Any] = {}
    signature = runner.describe(path, {"dims": {k: d.to_json() for k, d in context.dims.items()}})
    digest = digest_of([[name, digest_file(out / name)] for name in files])
    return Artifact(use.target, path, digest, carried(signature, parent.signature), files, meta)


def record(step: Data, say: Say) -> Data:
    """The source model's answers to every case, on a tape, and its own rounding error where that can be measured."""
    from optkit.parity.metrics import Comparison

    artifact = Artifact.from_json(step["artifact"])
    runner = get_runner(artifact.format)
    assert artifact.signature is not None
    tape = Tape(Path(step["out"]))
    dataset = _dataset(step, step["check_on"])
    cases = [Case.from_json(c) for c in step["cases"]]
    noise: dict[str, dict[str, float]] = {}
    fixed = batch_dim(artifact.signature.inputs) is None
    with ExitStack() as stack:
        session = stack.enter_context(_open(step, artifact))
        exact = None
        if "float64" in runner.precisions and all(
            t.dtype == "float32" for t in artifact.signature.outputs if t.dtype.startswith("float")
        ):
            exact = stack.enter_context(_open(step, artifact, precision="float64"))
        for number, case in enumerate(cases):
            done = 0
            comparison = Comparison()
            for batch, (tensors, count, _) in enumerate(feeds(case, dataset, artifact.signature.inputs)):
                outputs = session.infer(tensors)
                tape.write(number, batch, outputs)
                if exact and case.kind != "dims" and done < NOISE_SAMPLES:
                    rows = min(NOISE_SAMPLES - done, count)
                    part = tensors if fixed else _first(tensors, rows, count)  # a fixed batch is fed whole
                    try:
                        found = _first(exact.infer(part), rows, count)
                        comparison.add(_plain(found), _plain(_first(outputs, rows, count)), rows)
                    except (SourceError, UnavailableError):  # it just ran on these inputs: it has no float64
                        exact = None
                        noise.clear()
                done += count
                say(f"source model, {case.name}", min(1.0, done / max(1, len(dataset))))
            if exact and case.kind != "dims":
                result = comparison.result()
                noise[case.name] = {
                    name: metrics["rel_l2"]["worst"]
                    for name, metrics in result["outputs"].items()
                    if "rel_l2" in metrics
                }
        provider = session.provider
    return {"noise": noise or None, "provider": provider}


def _first(tensors: Tensors, rows: int, count: int) -> Tensors:
    """The first rows of tensors whose axis 0 is the sample axis; others whole."""
    return {name: t[:rows] if t.ndim and t.shape[0] == count else t for name, t in tensors.items()}


def _plain(tensors: Tensors) -> Tensors:
    import numpy as np

    return {name: t.astype(np.float64) if t.dtype.kind == "f" else t for name, t in tensors.items()}


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
    dataset = _dataset(step, step["check_on"])
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
            session = stack.enter_context(_open(step, artifact))
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
                own_rows = _first(answer, count, rows)
                for role, reference in references.items():
                    expected = reference.outputs(number, position, tensors)
                    expected_rows = _first(expected, count, rows)
                    if role == "source" and case.kind == "samples":
                        scoring.add(_first(tensors, count, rows), labels, expected_rows, own_rows, count)
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
        Tape(Path(ref["tape"])), lambda: _open(step, artifact), lambda tensors: adapted(tensors, signature)
    )


def _open(step: Data, artifact: Artifact, precision: str | None = None) -> AbstractContextManager[Session]:
    runner = get_runner(artifact.format)
    # Only a torch source of the recipe has to run where the recipe says; the check's device is the session's.
    return runner.open(artifact, device=step["device"], threads=step["threads"], precision=precision)


def _dataset(step: Data, name: str) -> Dataset:
    from optkit.data import open_dataset
    from optkit.dataspec import parse_data

    inputs = [TensorSpec.from_json(t) for t in step["inputs"]]
    dims = {k: Dim(**d) for k, d in step["dims"].items()}
    return open_dataset(parse_data(step["datasets"][name]), Path(step["base"]), inputs, dims, name)


def _context(step: Data, scratch: Path, say: Say) -> Context:
    inputs = tuple(TensorSpec.from_json(t) for t in step["inputs"])
    dims = {k: Dim(**d) for k, d in step["dims"].items()}
    samples = _dataset(step, step["data"]) if step.get("data") else None
    return Context(
        inputs, tuple(step["outputs"]), dims, scratch, samples, step["seed"], step["threads"], step["device"], say,
        metrics=tuple(metric_of(entry) for entry in step.get("metrics", ())), base=Path(step["base"]),
    )  # fmt: skip


RACE_FEEDS = 4
"""Batches of real samples that the artifacts of a race take turns on."""


def race(step: Data, say: Say) -> Data:
    """The speed of artifacts beside the first one, on real samples at the case's sizes, each in its own process.

    starts, rough: in how many processes each is opened and raced, and whether one may do. pairs: entrants whose answers
    are compared with another's: the same file under other settings.
    """
    from optkit.racing import STARTS
    from optkit.speed.race import race as run_race

    dataset = _dataset(step, step["check_on"])
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
    from optkit.parity.metrics import Comparison
    from optkit.reports.rows import EQUAL_DB, worst

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
        with _open(step, artifact) as session:
            results = make_up(
                lambda t: session.infer(adapted(t, signature)), Path(step["vectors"]), step["deferred"],
                [metric_of(entry) for entry in step.get("metrics", ())],
            )  # fmt: skip
            return {"cases": results, "provider": session.provider}
    compared = {"itself": Comparison(), "source": Comparison()}
    with np.load(step["vectors"], allow_pickle=False) as stored:
        rows = sorted({name.split("/", 1)[0] for name in stored.files}, key=int)
        with _open(step, artifact) as session:
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
    from optkit.blaming import localised

    return {"blame": localised(step, _dataset(step, step["check_on"]), say)}


def lint(step: Data, say: Say) -> Data:
    """What a target refuses of an ONNX file."""
    from optkit.linting import look

    return look(Path(step["path"]), step["target"])


TASKS: dict[str, Callable[[Data, Say], Data]] = {
    "warm": warm, "source": source, "data": data, "record": record, "run": run, "check": check, "verify": verify,
    "race": race, "lint": lint, "blame": blame,
}  # fmt: skip
