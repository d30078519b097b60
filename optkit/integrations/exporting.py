"""What both callbacks do: try the conversion before the training, export and gate, remember, and speak the verdict."""

from __future__ import annotations

import inspect
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optkit.api import convert, failure, first_of, planned
from optkit.cache import Cache, open_cache
from optkit.caching import keys
from optkit.errors import CheckError, OptkitError, StepError, UserError, did_you_mean, from_json
from optkit.integrations import ranks
from optkit.integrations.tracking import Tracker, active, put
from optkit.planning import Plan
from optkit.report import Report
from optkit.reports.rows import verdict
from optkit.reports.spelling import duration

WHEN = ("end", "best", "every best")
ON_FAILURE = ("raise", "keep training")

_OWN = ("model", "out", "cache", "raise_on_failure")
OPTIONS = tuple(name for name in inspect.signature(convert).parameters if name not in _OWN)
"""What a callback passes on to `optkit.convert`."""


@dataclass(frozen=True)
class Export:
    """One conversion in a training run.

    step, epoch: of the weights. checkpoint: the file or folder they are from, "" for those in memory. report: None
    where `error` kept the run from being started.
    """

    step: int
    epoch: float
    checkpoint: str
    folder: Path
    seconds: float
    report: Report | None
    error: OptkitError | None = None

    @property
    def held(self) -> bool:
        """Whether every delivery was made and proven."""
        return self.report is not None and self.report.ok

    @property
    def place(self) -> str:
        """What was converted, for people."""
        return f"step {self.step}" + (f" ({Path(self.checkpoint).name})" if self.checkpoint else "")

    def failed(self) -> OptkitError:
        """The error that says why this did not hold."""
        if self.error is not None:
            return self.error
        assert self.report is not None
        found = failure(self.report)
        error = CheckError(f"{self.place}: {found.what}", hint=f"the whole story is in {self.folder / 'report.html'}")
        error.report = self.report
        return error


class Exporter:
    """Converts a model of a training run whenever it is asked to. Every process of the training makes one.

    Parameters as in `optkit.integrations.callback`. Raises UserError for those that cannot be.
    """

    def __init__(
        self,
        *,
        when: str,
        on_failure: str,
        out: str | Path | None,
        keep: int | None,
        track: str | Tracker | Sequence[Tracker],
        artifacts: bool,
        rehearse: bool,
        cache: str | Path | Cache | None,
        tell: Callable[[str], None] | None,
        options: Mapping[str, Any],
    ) -> None:
        _one_of("when", when, WHEN)
        _one_of("on_failure", on_failure, ON_FAILURE)
        for name in options:
            if name not in OPTIONS:
                raise UserError(f"OptkitCallback takes no {name!r}", hint=did_you_mean(name, OPTIONS), subject=name)
        if not any(options.get(name) for name in ("to", "steps", "recipe")):
            raise UserError(
                "nothing says what to make of the model", hint='to=["onnx", "openvino"], steps=[...] or recipe="x.yaml"'
            )
        self.when, self.on_failure, self.keep, self.artifacts = when, on_failure, keep, artifacts
        self.out, self.rehearsing, self.options, self.tell = out, rehearse, dict(options), tell or _to_stderr
        self.cache = cache if isinstance(cache, Cache) else open_cache(cache)
        self.exports: list[Export] = []
        self.lost: list[str] = []
        self._track = track
        self._trackers: list[Tracker] = []
        self._name = ""
        _check_places(out, keep, when, track)

    # ---------------------------------------------------------------------------------------------- before training

    def begin(self, make: Callable[[], Any], trackers: Callable[[], Sequence[Tracker]]) -> None:
        """Find now whatever would keep the conversion from being done after hours of training.

        make: gives the untrained module, on the CPU. The recipe is planned, tools are looked for, samples are read and
        kept, the module is captured; with `rehearse=True` all is converted, and only verdicts are left open.
        trackers: those found in this training, asked for where none were named.
        """

        def work() -> dict[str, Any]:
            began = time.perf_counter()
            self._trackers = self._chosen(trackers)
            with unchanged_random():
                module = make()
                plan = self._planned(module)
                keys.require_tools(plan)
                self._keep_data(plan, module)
                name = plan.recipe.name
                if self.rehearsing:
                    self._rehearse(module, Path(self.out_folder(0, 0, name)))
            seconds = duration(time.perf_counter() - began)
            steps = ", ".join(plan.recipe.deliver)
            self.tell(f"optkit: {steps} can be made of this model, looked at in {seconds}")
            return {"name": name}

        self._name = str(ranks.on_first(work)["name"])

    def _chosen(self, found: Callable[[], Sequence[Tracker]]) -> list[Tracker]:
        if self._track == "auto":
            return [*found(), *active()]
        return [self._track] if hasattr(self._track, "log") else list(self._track)  # type: ignore[list-item, arg-type]

    def _planned(self, module: Any) -> Plan:
        options = dict(self.options)
        overrides = options.pop("overrides", ())
        for name in ("jobs", "listen"):
            options.pop(name, None)
        return planned(module, self.cache, overrides, options)

    def _keep_data(self, plan: Plan, module: Any) -> None:
        """Read the samples once: every export is judged on the same ones, and a shuffling loader is asked only now."""
        for name in dict.fromkeys([plan.recipe.check_on, *keys.fitted(plan)]):
            keys.data_key(plan.recipe, name, self.cache)
        if self.options.get("example_inputs") is None and not self.options.get("inputs"):
            self.options["example_inputs"] = first_of(module, self.options.get("data"), self.options.get("dims") or {})
        for name, dataset in (("data", "judge"), ("fit", "fit")):
            if self.options.get(name) is not None:
                self.options[name] = plan.recipe.document.data["data"][dataset]

    def _rehearse(self, module: Any, folder: Path) -> None:
        """Convert the untrained module: what fails fails now, and what does not hold is not told."""
        place = folder.with_name(f"{folder.name}-rehearsal")
        try:
            report = convert(module, out=place, cache=self.cache, raise_on_failure=False, **self.options)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        if report.interrupted:
            raise KeyboardInterrupt
        for step in report.steps:
            if step["status"] == "error":
                raise StepError(
                    f"rehearsal, before any training: {step['id']}: {step['error']['what']}",
                    hint=step["error"]["hint"] or "mend it now, it would fail after the training too",
                )

    # ---------------------------------------------------------------------------------------------- exports

    def export(self, make: Callable[[], Any], *, step: int, epoch: float, checkpoint: str = "") -> Export:
        """Convert, judge and log a model; raises what did not hold, unless training is to be kept going.

        make: gives the module, on the CPU; called in the first process only.
        """

        def work() -> dict[str, Any]:
            folder, began = Path(self.out_folder(step, epoch, self._name)), time.perf_counter()
            report, error = None, None
            try:
                with unchanged_random():
                    report = convert(make(), out=folder, cache=self.cache, raise_on_failure=False, **self.options)
            except OptkitError as caught:
                error = caught
            if report is not None and report.interrupted:
                raise KeyboardInterrupt
            made = Export(step, epoch, checkpoint, folder, time.perf_counter() - began, report, error)
            self._tell(made)
            lost = []
            if report is not None:
                lost = put(self._trackers, report, folder, step, artifacts=self.artifacts)
            return {
                "seconds": made.seconds, "report": report.data if report else None,
                "error": error.to_json() if error else None, "lost": lost,
            }  # fmt: skip

        done = ranks.on_first(work)
        made = self._of(done, step, epoch, checkpoint)
        self.exports.append(made)
        self.lost += done["lost"]
        self._let_go()
        if self.on_failure == "raise" and not made.held:
            raise made.failed()
        return made

    def _of(self, done: Mapping[str, Any], step: int, epoch: float, checkpoint: str) -> Export:
        folder = Path(self.out_folder(step, epoch, self._name))
        report = Report(done["report"]) if done["report"] is not None else None
        error = from_json(done["error"]) if done["error"] is not None else None
        return Export(step, epoch, checkpoint, folder, done["seconds"], report, error)

    def _tell(self, made: Export) -> None:
        if made.report is None:
            self.tell(f"optkit: {made.place}: {made.error}")
            return
        self.tell(
            f"optkit: {made.place}: {verdict(made.report.data)}, in {duration(made.seconds)}: "
            f"{made.folder / 'report.html'}"
        )

    def out_folder(self, step: int, epoch: float, name: str) -> str:
        """Where an export of that step goes."""
        text = str(self.out) if self.out is not None else str(Path("build") / name)
        return text.replace("{step}", str(step)).replace("{epoch}", f"{epoch:g}")

    def _let_go(self) -> None:
        """Remove what is beyond `keep`: of ever better checkpoints, the last are the best."""
        if self.keep is None or not ranks.is_first():
            return
        folders = list(dict.fromkeys(export.folder for export in reversed(self.exports)))
        for folder in folders[self.keep :]:
            shutil.rmtree(folder, ignore_errors=True)

    def exported(self, checkpoint: str) -> bool:
        """Whether the newest export is that of a checkpoint."""
        return bool(self.exports) and self.exports[-1].checkpoint == checkpoint

    # ---------------------------------------------------------------------------------------------- after training

    def finish(self) -> None:
        """Speak the verdict on what training left: the last export is the one that would be shipped.

        Raises its error where it did not hold; StepError where figures could not be logged.
        """
        if not self.exports:
            return
        last = self.exports[-1]
        if not last.held:
            raise last.failed()
        earlier = [export.place for export in self.exports[:-1] if not export.held]
        if earlier and ranks.is_first():
            self.tell(f"optkit: did not hold before, and was bettered since: {', '.join(earlier)}")
        if self.lost:
            raise StepError(
                f"what was made holds and lies in {last.folder}, but could not all be logged: {self.lost[0]}"
                + (f" (and {len(self.lost) - 1} more)" if len(self.lost) > 1 else ""),
                hint="mend the tracking server or its credentials, or name others with track=[...]",
                details="\n".join(self.lost),
            )


def _one_of(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        hint = (did_you_mean(value, known) if isinstance(value, str) else "") or f"one of: {', '.join(known)}"
        raise UserError(f"{name}={value!r} is not known", hint=hint, subject=name)


def _check_places(out: str | Path | None, keep: int | None, when: str, track: Any) -> None:
    text = str(out or "")
    unknown = [found for found in re.findall(r"\{[^}]*\}", text) if found not in ("{step}", "{epoch}")]
    if unknown:
        raise UserError(f"out={text!r}: {unknown[0]} is not known", hint="{step} and {epoch} are", subject="out")
    several = "{" in text
    if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 1):
        raise UserError(f"keep={keep!r} is no number of exports", hint="keep=3", subject="keep")
    if keep is not None and not (several and when == "every best"):
        raise UserError(
            "keep= has no effect: there is one folder, which the next export replaces",
            hint='out="build/{step}" with when="every best" has one for each',
            subject="keep",
        )
    if isinstance(track, str) and track != "auto":
        raise UserError(
            f"track={track!r} is not known",
            hint='track="auto", or of optkit.integrations.tracking: [MLflow(), TensorBoard("runs"), WandB()]',
            subject="track",
        )


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def unchanged_random() -> Iterator[None]:
    """Leaves the generators of Python, NumPy and torch, on the CPU and the current GPU, as they were found."""
    import numpy as np
    import torch

    mine, theirs = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
            yield
    finally:
        random.setstate(mine)
        np.random.set_state(theirs)


def on_cpu(module: Any, without: Sequence[Any] = ()) -> Any:
    """A copy of a module on the CPU, without gradients; `without` are objects that it refers to and that stay behind.

    Raises UserError for a module that cannot be copied.
    """
    import copy

    import torch

    memo: dict[int, Any] = {id(one): None for one in without if one is not None}
    for tensor in [*module.parameters(), *module.buffers()]:
        moved = tensor.detach().to("cpu", copy=True)
        kept = isinstance(tensor, torch.nn.Parameter)
        memo[id(tensor)] = torch.nn.Parameter(moved, tensor.requires_grad) if kept else moved
    try:
        return copy.deepcopy(module, memo).cpu()
    except Exception as error:  # whatever the module holds besides tensors
        raise UserError(
            f"the module cannot be copied: {type(error).__name__}: {error}",
            hint="keep losses, file handles and locks out of its attributes, or name a part of it: model='net'",
            subject="model",
        ) from error


def part_of(module: Any, model: str | Callable[[Any], Any] | None) -> Any:
    """The module that is exported: `module` itself, the one at a dotted path in it, or what a function makes of it."""
    import torch

    if model is None:
        return module
    found = module
    if isinstance(model, str):
        for name in model.split("."):
            known = [child for child, _ in found.named_children()]
            if not hasattr(found, name):
                raise UserError(
                    f"model={model!r}: {type(found).__name__} has no {name!r}",
                    hint=did_you_mean(name, known) or "name an attribute that holds an nn.Module",
                    subject="model",
                )
            found = getattr(found, name)
    else:
        found = model(module)
    if not isinstance(found, torch.nn.Module):
        raise UserError(
            f"model={model!r} is a {type(found).__name__}, not an nn.Module",
            hint="name an attribute that holds one: model='net'",
            subject="model",
        )
    return found
