"""The Python API: convert, plan, compare, verify, and one way to run any artifact."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from optkit import keys
from optkit.artifact import Artifact, Dim, Signature, TensorSpec, digest_file
from optkit.cache import Cache
from optkit.capture import capture
from optkit.deferral import first_verdicts
from optkit.deliver import RECORD
from optkit.errors import CheckError, SourceError, UserError
from optkit.events import Listener, ignore
from optkit.execute import execute
from optkit.judging import judge_case, judge_cases
from optkit.parity.bounds import METRICS, parse_bound
from optkit.parity.cases import make_cases
from optkit.planning import Check, Plan, make_plan
from optkit.pool import run_alone
from optkit.recipe import Recipe, load_recipe, recipe_from
from optkit.registry import get_runner
from optkit.report import Report
from optkit.shorthand import data_section, is_recipe, recipe_data
from optkit.sources import source_artifact
from optkit.worker import raise_if_failed

if TYPE_CHECKING:
    from optkit.plugin import Tensors

Arrays = Mapping[str, Any]
Data = str | Path | Mapping[str, Any] | Iterable[Arrays]


def plan(recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Plan:
    """What a recipe would do: its steps in order and the check on each. Opens no model.

    recipe: a .yaml file, the same as plain data, or a Recipe. overrides: as in
        "steps.int8.with.per_channel=false".
    Raises RecipeError with every mistake found.
    """
    if isinstance(recipe, Recipe):
        return make_plan(recipe)
    return make_plan(recipe_from(recipe) if isinstance(recipe, Mapping) else load_recipe(recipe, overrides))


def convert(
    model: Any,
    *,
    to: Sequence[str] = (),
    steps: Sequence[Mapping[str, Any]] = (),
    example_inputs: Any = None,
    inputs: Mapping[str, Mapping[str, Any]] | None = None,
    dims: Mapping[str, tuple[int, int, int]] | None = None,
    data: Data | None = None,
    fit: Data | None = None,
    name: str = "model",
    out: str | Path | None = None,
    cache: str | Path | Cache | None = None,
    jobs: int | None = None,
    overrides: Sequence[str] = (),
    listen: Listener = ignore,
    raise_on_failure: bool = True,
) -> Report:
    """Convert a model and prove each result; the report says what was made, where it lies and how far it is off.

    model: a recipe (.yaml file, plain data, Recipe), a model file, "FILE.py:NAME", a Hugging Face folder, or a live
        object: torch nn.Module, ExportedProgram or ScriptModule, onnx.ModelProto, openvino.Model.
    to: target formats, each a step of that name. steps: more steps, as a recipe writes them (`{"id": "int8", "from":
        "onnx", "use": "onnx.quantize", "data": "fit", "check": [...]}`).
    example_inputs: for a live module: arrays or tensors by input name, or a tuple in forward()'s order, with the batch
        axis. inputs: instead, or beside it, as a recipe's `inputs:`. dims: name -> (min, opt, max); where `inputs`
        names no dim, each input's axis 0 becomes the dim "batch" if `dims` has one.
    data: what results are judged on; fit: what lossy steps are fitted on: a file, a recipe's dataset entry, arrays by
        name (axis 0 counts samples), or an iterable of samples (arrays by name without the batch axis). Without `data`,
        faithful conversions are checked on random inputs, and the report says so.
    out: folder of the deliveries, default build/NAME. raise_on_failure: raise CheckError (with `.report`) unless all
        held.

    Raises RecipeError, SourceError, DataError, UnavailableError for what concerns the whole run.
    """
    store = cache if isinstance(cache, Cache) else Cache(Path(cache) if cache else None)
    with ExitStack() as stack:
        if isinstance(model, Recipe | Mapping) or (isinstance(model, str | Path) and is_recipe(str(model))):
            made = plan(model, overrides)
        else:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="optkit-live-")))
            if isinstance(model, str | Path):
                specs, ranges = {k: dict(v) for k, v in (inputs or {}).items()}, dict(dims or {})
                document = recipe_data(str(model), to or ["onnx"], [], [], None, inputs_given=bool(specs))
            else:
                section, specs, ranges = capture(model, work, example_inputs, inputs, dims or {})
                document = {"version": 1, "model": section, "steps": [{"id": t, "to": t} for t in to]}
            document |= {"name": name} if name != "model" or "name" not in document else {}
            document["steps"] = [*({"id": t, "to": t} for t in to), *(dict(s) for s in steps)]
            document.pop("deliver", None)
            document |= {"inputs": specs} if specs else {}
            document |= (
                {"dims": {k: dict(zip(("min", "opt", "max"), v, strict=True)) for k, v in ranges.items()}}
                if (ranges)
                else {}
            )
            document["data"] = {"judge": _data(data, work, "judge", document["model"])}
            document["check_on"] = "judge"
            if fit is not None:
                document["data"]["fit"] = _data(fit, work, "fit", document["model"])
            made = make_plan(recipe_from(document))
        folder = Path(out) if out else Path("build") / made.recipe.name
        report = execute(made, out=folder, cache=store, jobs=jobs, listen=listen)
    if raise_on_failure and not report.ok:
        raise failure(report)
    return report


def failure(report: Report) -> CheckError:
    """The error that says which steps of a report did not hold, and why."""
    lines = []
    for step in report.steps:
        if step["status"] == "error":
            lines.append(f"{step['id']}: {step['error']['what']}")
        elif step["status"] == "failed":
            wrong = [v["text"] for c in step["check"]["cases"] for v in c["verdicts"] if not v["held"]]
            wrong += [p["text"] for c in step["check"]["cases"] for p in c["source"]["problems"]]
            lines.append(f"{step['id']}: {wrong[0] if wrong else 'its check did not hold'}")
        elif step["status"] == "blocked":
            lines.append(f"{step['id']}: blocked by {step['blocked_by']}")
        elif step["status"] == "deferred" and not step["on_target"]:
            lines.append(f"{step['id']}: deferred, {step['error']['what']}")
    error = CheckError(
        "; ".join(lines) or "the run was interrupted", hint="the whole story is in error.report and in report.json"
    )
    error.report = report
    return error


def _data(data: Data | None, work: Path, name: str, model: Mapping[str, Any]) -> Mapping[str, Any]:
    if data is None or isinstance(data, str | Path):
        section = data_section(str(data) if data is not None else None, model)
        return {k: str(Path(v).absolute()) if k in ("npz", "images", "jsonl") else v for k, v in section.items()}
    if (
        isinstance(data, Mapping)
        and any(k in data for k in ("npz", "images", "jsonl", "python", "random"))
        and all(not hasattr(v, "shape") for v in data.values())
    ):
        return data
    import numpy as np

    path = work / f"{name}.npz"
    if isinstance(data, Mapping):
        arrays = {k: np.asarray(v) for k, v in data.items()}
    else:
        samples = [{k: np.asarray(v) for k, v in sample.items()} for sample in data]
        if not samples:
            raise UserError(f"{name}: the data given holds no sample", hint="give arrays by input name")
        try:
            arrays = {k: np.stack([s[k] for s in samples]) for k in samples[0]}
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{name}: samples differ in inputs or shapes: {error}",
                hint="give a dataset entry with python: FILE.py:NAME for ragged samples",
            ) from error
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return {"npz": str(path)}


class Model:
    """An open model: call it with named arrays, whatever its format. Close it, or use it in a `with` block."""

    def __init__(self, artifact: Artifact, device: str, threads: int) -> None:
        self._stack = ExitStack()
        self.artifact = artifact
        runner = get_runner(artifact.format)
        self.signature: Signature = artifact.signature or runner.describe(artifact.path, artifact.meta)
        self._session = self._stack.enter_context(
            runner.open(artifact.with_signature(self.signature), device=device, threads=threads)
        )

    @property
    def provider(self) -> str:
        """What really runs it."""
        return self._session.provider

    def __call__(self, tensors: Tensors | None = None, /, **named: Any) -> Tensors:
        """Outputs by name, for inputs by name with their batch axis. Raises UserError for inputs that do not fit."""
        return self._session.infer({**(tensors or {}), **named})

    def close(self) -> None:
        """Free the model."""
        self._stack.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_artifact(path: str | Path, device: str = "cpu", threads: int | None = None) -> Model:
    """The model at `path` (a delivered folder, or a model file), ready to be called with named arrays.

    Raises UserError for a path that is no model, UnavailableError when its runtime or device is not there.
    """
    with ExitStack():
        return Model(artifact_at(str(path), None, None, Cache())[0], device, threads or keys.cores())


def artifact_at(
    ref: str, inputs: Sequence[TensorSpec] | None, dims: Mapping[str, Dim] | None, cache: Cache
) -> tuple[Artifact, Recipe | None]:
    """The artifact a path or callable stands for, and the recipe stub that loads it (None for a delivered folder).

    Raises UserError for what is no model.
    """
    folder = Path(ref)
    if (folder / RECORD).is_file():
        return delivered(folder), None
    document = recipe_data(ref, ["onnx"], [], [], None, inputs_given=inputs is not None)
    recipe = recipe_from(
        {
            **document,
            "inputs": {t.name: {k: v for k, v in t.to_json().items() if k != "name"} for t in inputs or ()},
            "dims": {k: d.to_json() for k, d in (dims or {}).items()},
        }
    )
    artifact = source_artifact(recipe, cache)
    assert artifact is not None
    return artifact, recipe


def dims_at(ref: str) -> dict[str, Dim]:
    """The ranges of a delivered artifact's dims; none for anything else."""
    try:
        record = json.loads((Path(ref) / RECORD).read_text(encoding="utf-8"))
        return {name: Dim(**sizes) for name, sizes in record["dims"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def delivered(folder: Path) -> Artifact:
    """The artifact in a delivered folder, from its optkit.json. Raises UserError when that is missing or damaged."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = tuple(n for n in record["files"] if n != record["vectors"])
        return Artifact(
            record["format"], folder / record["main"], record["digest"], Signature.from_json(record["signature"]), files
        )
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {RECORD}", hint="name a folder that optkit convert delivered") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / RECORD} is damaged: {error}", hint="deliver it again with optkit convert"
        ) from error


def compare(
    a: str | Path,
    b: str | Path,
    *,
    data: Data | None = None,
    bounds: Sequence[str] = (),
    inputs: Mapping[str, Mapping[str, Any]] | None = None,
    dims: Mapping[str, tuple[int, int, int]] | None = None,
    device: str = "cpu",
    threads: int | None = None,
    cache: Cache | None = None,
) -> dict[str, Any]:
    """Parity of model `b` with model `a`, each a file, a delivered folder or a callable, over its data and dims.

    Returns {"a", "b", "cases": [...], "held", "provider"}; a case has the metrics ("source"), verdicts and `held`.
    Without `bounds` those of a faithful float32 conversion apply. Raises UserError for inputs that do not match.
    """
    cache = cache or Cache()
    stated = tuple(parse_bound(text) for text in bounds)
    specs = [
        TensorSpec(n, s.get("dtype", "float32"), tuple(s["shape"]), s.get("layout"), s.get("range"))
        for n, s in (inputs or {}).items()
    ] or None
    ranges = {k: Dim(*v) for k, v in (dims or {}).items()}
    with tempfile.TemporaryDirectory(prefix="optkit-check-") as temporary:
        work = Path(temporary)
        common: dict[str, Any] = {
            "base": str(Path.cwd()), "seed": 0, "device": device, "threads": threads or keys.cores(), "outputs": [],
            "inputs": [t.to_json() for t in specs or ()], "dims": {k: d.to_json() for k, d in ranges.items()},
        }  # fmt: skip
        pair: list[Artifact] = []
        for ref in (a, b):
            artifact, _ = artifact_at(str(ref), specs, ranges, cache)
            told = raise_if_failed(
                run_alone(
                    {**common, "task": "source", "artifact": artifact.to_json(), "inputs": []},
                    work / f"describe-{len(pair)}",
                )
            )
            pair.append(artifact.with_signature(Signature.from_json(told["signature"])))
            for name, sizes in dims_at(str(ref)).items():
                ranges.setdefault(name, sizes)
        first, second = pair
        assert first.signature is not None
        assert second.signature is not None
        _same_inputs(first.signature, second.signature)
        chosen = first.signature.inputs
        for dim in dict.fromkeys(d for t in chosen for d in t.dynamic):
            ranges.setdefault(dim, Dim(1, 2, 4))
        cases = make_cases(chosen, ranges)
        section = _data(data, work, "judge", {})
        done = raise_if_failed(run_alone({
            **common, "task": "check", "artifact": second.to_json(), "cases": [c.to_json() for c in cases],
            "inputs": [t.to_json() for t in chosen], "dims": {k: d.to_json() for k, d in ranges.items()},
            "datasets": {"judge": dict(section)}, "check_on": "judge", "out": str(_made(work / "out")),
            "references": {"source": {"artifact": first.to_json(), "tape": str(work / "tape")}},
        }, work / "check"))  # fmt: skip
    check = Check(stated, "float32", lossy=bool(stated), stated_by=tuple("--bound" for _ in stated))
    judged = judge_cases(done["cases"], check, None, second.signature)
    return {
        "a": str(a),
        "b": str(b),
        "cases": judged,
        "held": all(c["held"] for c in judged),
        "provider": done["provider"],
        "synthetic": "random" in section,
    }


def _same_inputs(first: Signature, second: Signature) -> None:
    one, two = [t.name for t in first.inputs], [t.name for t in second.inputs]
    if sorted(one) != sorted(two):
        raise SourceError(
            f"the models take different inputs: {', '.join(one)} and {', '.join(two)}",
            hint="compare models of one signature; optkit inspect shows each",
        )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def verify(folder: str | Path, *, device: str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """A delivered artifact proven again: its files' digests, and its answers to the test vectors that lie beside it.

    One whose check was deferred is proven here for the first time, on every case and by the bounds of its step.

    Returns {"artifact", "format", "held", "problems": [text], "cases": [...], "provider"}. Raises UserError for a
    folder that is no delivery, UnavailableError when its runtime is not on this machine.
    """
    folder = Path(folder)
    artifact = delivered(folder)
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    problems = []
    for name, was in record["files"].items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif digest_file(path) != was["sha256"]:
            problems.append(f"{name} is not the file that was delivered: its sha256 differs")
    cases: list[dict[str, Any]] = []
    provider = None
    deferred = record.get("deferred") or {}
    if not record["vectors"]:
        problems.append(
            "no test vectors were delivered with it"
            + (f": its check was waived ({record['check']['waived']})" if record["status"] == "waived" else "")
        )
    elif not problems:
        done = raise_if_failed(run_alone({
            "task": "verify", "artifact": artifact.to_json(), "vectors": str((folder / record["vectors"]).absolute()),
            "device": device, "threads": threads or keys.cores(), "deferred": deferred.get("cases"),
        }))  # fmt: skip
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
    per_sample = [bound for bound in map(parse_bound, texts) if METRICS[bound.metric].aggregate == "worst"]
    if not per_sample:
        return [own]
    source = judge_case(
        {**case, "name": "against the source model's answers"},
        Check(tuple(per_sample), before["precision"], lossy=False, stated_by=tuple("" for _ in per_sample)),
        None,
        artifact.signature,
    )
    return [own, source]
