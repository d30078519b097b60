"""A pass run, and what it wrote read back: `optkit.running.making` asks for this."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from optkit.artifact import Artifact, Dim, TensorSpec, digest_file, digest_of
from optkit.cache import lock_folder, unlock_folder
from optkit.caching.sharing import Shared
from optkit.errors import StepError
from optkit.models.signatures import carried, promised
from optkit.plans.named import named_files
from optkit.plugin import Context, Pass, Runner, Score
from optkit.registry import get_pass, get_runner
from optkit.spec.metricspec import metric_of
from optkit.tasks.common import Data, Say, dataset_of


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
            shared=Shared(step["shared"], say) if step.get("shared") else None, score=_score(step),
        )  # fmt: skip
        if (tried := use.tries(options)) is not None:
            from optkit.tasks.trials import Trials

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


def _score(step: Data) -> Score | None:
    """What measures the recipe's metrics for a pass that trains."""
    if not step.get("scores"):
        return None
    from optkit.scoring.held import HeldOut

    return HeldOut([metric_of(entry) for entry in step["scores"]], Path(step["base"]))


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


def _context(step: Data, scratch: Path, say: Say) -> Context:
    inputs = tuple(TensorSpec.from_json(t) for t in step["inputs"])
    dims = {k: Dim(**d) for k, d in step["dims"].items()}
    samples = dataset_of(step, step["data"]) if step.get("data") else None
    return Context(
        inputs, tuple(step["outputs"]), dims, scratch, samples, step["seed"], step["threads"], step["device"], say,
        metrics=tuple(metric_of(entry) for entry in step.get("metrics", ())), base=Path(step["base"]),
    )  # fmt: skip
