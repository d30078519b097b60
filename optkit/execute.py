"""Run a Plan: hand tasks to workers as their inputs are proven, ask the cache first, judge what comes back."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optkit import __version__, blaming, keys
from optkit.artifact import Artifact, Dim, Signature, digest_of
from optkit.cache import Cache, Entry, open_cache
from optkit.deferral import beside
from optkit.deliver import clear, deliver, output_folder
from optkit.disk import disk_error, temporary_files
from optkit.errors import OptkitError, SourceError, StepError, UnavailableError, UserError, did_you_mean, from_json
from optkit.events import Listener, Notice, RunFinished, RunStarted, StepFinished, StepProgress, StepStarted, ignore
from optkit.gating import Measured, judged
from optkit.judging import judge_cases, with_scores
from optkit.parity.cases import Case, make_cases
from optkit.planning import Plan, Step
from optkit.pool import Message, Pool
from optkit.racing import SECONDS, heats, musts, speed_of
from optkit.recipe import SOURCE, HuggingFaceSource
from optkit.registry import get_runner
from optkit.report import SCHEMA, Report, exit_code_of
from optkit.reports import junit
from optkit.sizes import model_bytes
from optkit.sources import source_artifact
from optkit.stepstate import StepState

_SETUP_LIMIT_SECONDS = 3600.0


def execute(
    plan: Plan, *, out: Path, cache: Cache | None = None, jobs: int | None = None, listen: Listener = ignore
) -> Report:
    """Run a plan; deliver what was proven to `out`/STEP, and write `out`/report.json. Returns the report.

    jobs: workers at a time; default: one per core, at most 4. A step's failure is in the report. Raised are errors
    that concern the whole run, and are in `out`/report.junit.xml alone: UserError for a source or a dataset that is not
    as the recipe says or an unusable `out`, UnavailableError for what is not installed. An interrupt gives a report
    with exit code 130; finished steps stay in the cache.
    """
    cache = cache or open_cache()
    keys.require_tools(plan)
    jobs = jobs or min(4, keys.cores())
    with (
        output_folder(out, plan.deliver),
        cache.scratch() as scratch,
        Pool(jobs, out / "logs") as pool,
    ):
        run = _Run(plan, out, cache, pool, listen, scratch)
        try:
            return run.perform()
        except OSError as error:
            raise _disk_error(error, out, cache) from error
        except OptkitError as error:  # of the whole run: a CI system's test view has to show it too
            junit.write_aborted(plan.recipe.name, error, out)
            raise


def cached_steps(plan: Plan, cache: Cache) -> dict[str, bool | None]:
    """Which steps have their output in the cache; None where telling would mean reading a big file."""
    found: dict[str, bool | None] = dict.fromkeys((s.id for s in plan.steps), None)
    absent = keys.unusable(plan)
    try:
        source = source_artifact(plan.recipe, cache, known_only=True)
    except OptkitError:
        source = None
    if source is None:
        return found
    entry = cache.get(keys.describe_key(plan.recipe, source))
    if entry is None:
        return dict.fromkeys(found, False)
    made: dict[str, Artifact] = {SOURCE: source.with_signature(Signature.from_json(entry.data["signature"]))}
    for step in plan.steps:
        parent = made.get(step.parent)
        data = keys.data_key(plan.recipe, step.data, cache, known_only=True) if step.data else None
        if step.environment in absent:  # what is in it is part of the key
            found[step.id] = False
            continue
        if parent is None or (step.data and data is None):
            found[step.id] = None if found.get(step.parent, True) is None else False
            continue
        reads = keys.reads_key(plan, step, cache, known_only=True)
        if reads is None:
            continue
        entry = cache.get(keys.step_key(plan, step, parent, data, made[SOURCE], reads))
        found[step.id] = entry is not None
        if entry is not None:
            made[step.id] = _artifact_in(entry)
    return found


def _artifact_in(entry: Entry) -> Artifact:
    data = dict(entry.data["artifact"])
    return Artifact.from_json({**data, "path": str(entry.folder / Path(data["path"]).name)})


class _Run:
    """One run of a plan. `perform` loops: advance what can be advanced, then take one message from a worker."""

    def __init__(self, plan: Plan, out: Path, cache: Cache, pool: Pool, listen: Listener, scratch: Path) -> None:
        self.plan, self.recipe, self.out, self.cache, self.pool, self.listen = (
            plan,
            plan.recipe,
            out,
            cache,
            pool,
            listen,
        )
        self.scratch = scratch
        self.states = {s.id: StepState(s) for s in plan.steps}
        # The step with the longest way still below it goes first, so that no worker idles at the end.
        self.urgent = sorted(self.states.values(), key=lambda state: -plan.height(state.step.id))
        self.started = time.perf_counter()
        self.began = datetime.now(UTC)
        self.unsigned = Artifact(plan.recipe.source_format, Path(), "")
        self.source: Artifact | None = None
        self.data_keys: dict[str, str] = {}
        self.data_info: Mapping[str, Any] | None = None
        self.record: Entry | None = None
        self.cases: tuple[Case, ...] = ()
        self.dims = dict(plan.recipe.dims)
        self.threads = plan.recipe.threads or keys.cores()
        self.heats = heats(plan)
        self.busy: set[str] = set()
        self.staging: dict[str, Path] = {}
        self.benchmark: dict[str, Any] | None = None
        self.raced: list[Mapping[str, Any]] = []
        self.warmed = 0

    def perform(self) -> Report:
        self.listen(RunStarted(self.recipe.name, tuple(self.states)))
        code = None
        if self.recipe.benchmark is not None:
            from optkit.benchmarking import require_threads

            try:
                require_threads(self.recipe.benchmark)
            except UserError as error:
                raise self.located(error) from None
        try:
            artifact = source_artifact(self.recipe, self.cache)
            assert artifact is not None
            self.unsigned = artifact
            wanted = [self.recipe.check_on, *keys.fitted(self.plan)]
            for name in dict.fromkeys(wanted):
                key = keys.data_key(self.recipe, name, self.cache)
                assert key is not None
                self.data_keys[name] = key
            while True:
                self.advance()
                self.tell_of_cache()
                if all(s.phase == "done" for s in self.states.values()) and not self.races():
                    break  # whatever still warms up is not waited for
                message = self.pool.wait(0.1)
                if message is not None:
                    self.take(message)
            self.judge_limits()
            self.measure()
            self.cache.settle()
        except KeyboardInterrupt:
            code = 130
        finally:
            self.tell_of_cache()
            for folder in self.staging.values():
                shutil.rmtree(folder, ignore_errors=True)
        report = self.report(code)
        report.write(self.out / "report.json")
        if traffic := self.cache.traffic():
            self.listen(Notice("cache", traffic))
        self.listen(RunFinished(report.exit_code, report.data["seconds"]))
        return report

    def tell_of_cache(self) -> None:
        for text in self.cache.notices():
            self.listen(Notice("cache", text))

    # --- what can be done now

    def advance(self) -> None:
        """Settle all that the cache knows, then fill the free workers."""
        if self.source is None:
            self.find_source()
        if self.source is not None and self.data_info is None:
            self.find_data()
        if self.source is not None and self.data_info is not None and self.record is None:
            self.find_record()
        moved = True
        while moved:
            moved = False
            for state in self.urgent:
                before = (state.phase, state.status)
                self.advance_step(state)
                moved |= before != (state.phase, state.status)
        self.warm()

    def can_start(self, task: str) -> bool:
        return task not in self.busy and self.pool.free > 0

    def find_source(self) -> None:
        key = keys.describe_key(self.recipe, self.unsigned)
        entry = self.cache.get(key)
        if entry is not None:
            self.set_source(entry)
        elif self.can_start("source"):
            self.submit("source", {"task": "source", "artifact": self.unsigned.to_json()}, self.source_modules())

    def set_source(self, entry: Entry) -> None:
        signature = Signature.from_json(entry.data["signature"])
        self.source = self.unsigned.with_signature(signature)
        for name in self.recipe.dims:
            if name not in signature.dynamic:
                error = SourceError(
                    f"dims.{name}: the model has no dynamic dim of this name",
                    subject=f"dims.{name}",
                    hint=did_you_mean(name, signature.dynamic) or "remove it, or export the model with a dynamic dim",
                )
                raise self.located(error)
        for name in signature.dynamic:  # a file's own dynamic dims, which the recipe does not mention
            self.dims.setdefault(name, Dim(1, 2, 4))
        self.cases = make_cases(signature.inputs, self.dims)
        if self.recipe.benchmark is not None:
            from optkit.benchmarking import require_batches

            try:
                require_batches(self.recipe.benchmark, signature.inputs, self.dims)
            except UserError as error:
                raise self.located(error) from None

    def find_data(self) -> None:
        assert self.source is not None
        entry = self.cache.get(keys.datasets_key(self.plan, self.data_keys, self.source))
        if entry is not None:
            self.data_info = entry.data["datasets"]
        elif self.can_start("data"):
            self.submit(
                "data", {"task": "data", "check_on": self.recipe.check_on, "fitted": keys.fitted(self.plan)}, {"numpy"}
            )

    def find_record(self) -> None:
        assert self.source is not None
        entry = self.cache.get(keys.record_key(self.recipe, self.source, self.judge_key, self.cases))
        if entry is not None:
            self.record = entry
        elif self.can_start("record"):
            self.submit(
                "record",
                {
                    "task": "record",
                    "artifact": self.source.to_json(),
                    "check_on": self.recipe.check_on,
                    "cases": [c.to_json() for c in self.cases],
                    "out": str(self.stage("record")),
                },
                self.source_modules(),
            )

    @property
    def judge_key(self) -> str:
        return self.data_keys[self.recipe.check_on]

    def advance_step(self, state: StepState) -> None:
        if state.phase == "waiting":
            self.start_step(state)
        if state.phase == "made":
            self.start_check(state)
        if state.phase == "failing":
            self.start_blame(state)

    def start_step(self, state: StepState) -> None:
        step = state.step
        parent = self.states.get(step.parent)
        if parent is not None and parent.phase == "done" and not parent.usable:
            state.blocked_by = parent.blocked_by or parent.step.id
            self.finish(state, "blocked")
            return
        made = self.artifact_of(step.parent)
        if made is None or (parent is not None and not parent.usable) or (step.data and self.data_info is None):
            return
        if not state.key:
            assert self.source is not None
            data, reads = self.data_keys.get(step.data or ""), keys.reads_key(self.plan, step, self.cache)
            state.key = keys.step_key(self.plan, step, made, data, self.source, reads)
            entry = self.cache.get(state.key)
            if entry is not None:
                state.cached["run"] = True
                self.set_made(state, entry)
                return
        if self.can_start(f"run:{step.id}"):
            self.submit(f"run:{step.id}", {
                "task": "run", "pass": step.use.name, "options": step.options_json(), "artifact": made.to_json(),
                "data": step.data, "out": str(self.stage(f"run:{step.id}")),
                "source": self.source.to_json() if self.source and step.use.wants_source(step.options) else None,
                "kept": str(self.cache.partial(state.key)) if step.use.resumes else None,
                "metrics": [metric.to_json() for metric in keys.budgeted(self.plan, step)],
                "shared": {"root": str(self.cache.root), "key": keys.shared_key(self.plan, step, data)}
                if (data := self.data_keys.get(step.data or "")) else None,
            }, {*step.use.modules}, step.timeout_seconds, step.python)  # fmt: skip
            state.phase = "running"

    def set_made(self, state: StepState, entry: Entry) -> None:
        made = _artifact_in(entry)
        runtime = dict(state.step.runtime)
        state.artifact = replace(made, meta={**made.meta, "runtime": runtime}) if runtime else made
        state.notes = entry.data["notes"]
        state.peak_bytes = entry.data.get("peak_bytes")
        state.made_seconds = entry.data.get("seconds")
        state.phase = "made"

    def start_check(self, state: StepState) -> None:
        step = state.step
        assert state.artifact is not None
        if step.check.waived is not None:
            state.check = self.check_json(state, [], None)
            self.finish(state, "waived")
            return
        if self.record is None or self.source is None:
            return
        parent = self.runnable_parent(step)
        key = keys.check_key(self.recipe, state.artifact, self.source, parent, self.judge_key, self.cases)
        entry = self.cache.get(key)
        scores = self.scores_of(state)
        missing = [metric for metric in self.recipe.metrics if metric.name not in scores]
        if entry is not None and not missing:
            state.cached["check"] = True
            self.set_checked(state, entry, scores)
        elif self.can_start(f"check:{step.id}"):
            state.metric_keys = self.metric_keys(state)
            references = {"source": {"artifact": self.source.to_json(), "tape": str(self.record.folder)}}
            if parent is not None and entry is None:
                references["parent"] = {"artifact": parent.to_json(), "tape": str(self.tape(step.parent))}
            self.submit(f"check:{step.id}", {
                "task": "check", "artifact": state.artifact.to_json(), "references": references, "defer": True,
                "check_on": self.recipe.check_on,
                # Where only a metric is new, nothing but the judging set is run again.
                "cases": [c.to_json() for c in (self.cases if entry is None else self.cases[:1])],
                "metrics": [metric.to_json() for metric in missing], "scores_only": entry is not None,
                "tape": str(self.tape(step.id)) if self.plan.children(step.id) else None,
                "out": str(self.stage(f"check:{step.id}")),
            }, get_runner(state.artifact.format).modules, step.timeout_seconds)  # fmt: skip
            state.phase = "checking"

    def scores_of(self, state: StepState) -> dict[str, Any]:
        """What the cache knows of the task metrics of a step's output, by name."""
        found = {name: self.cache.get(key) for name, key in self.metric_keys(state).items()}
        return {name: entry.data["score"] for name, entry in found.items() if entry is not None}

    def metric_keys(self, state: StepState) -> dict[str, str]:
        assert state.artifact is not None
        assert self.source is not None
        return {
            m.name: keys.metric_key(
                self.recipe, m, state.artifact, self.source, self.judge_key, self.cases[0], self.cache
            )
            for m in self.recipe.metrics
        }

    def tape(self, step_id: str) -> Path:
        return self.scratch / "tapes" / digest_of(step_id)[:16]

    def runnable_parent(self, step: Step) -> Artifact | None:
        """The output of the step before, where there is one that this machine runs: what a check compares with."""
        parent = self.states.get(step.parent)
        return parent.artifact if parent is not None and parent.status != "deferred" else None

    def artifact_of(self, step_id: str) -> Artifact | None:
        return self.source if step_id == SOURCE else self.states[step_id].artifact

    def set_checked(self, state: StepState, entry: Entry, scores: Mapping[str, Any]) -> None:
        assert self.record is not None
        assert state.artifact is not None
        noise = self.record.data.get("noise")
        scores = {metric.name: scores[metric.name] for metric in self.recipe.metrics}
        measured = with_scores(entry.data["cases"], scores)
        cases = judge_cases(measured, state.step.check, noise, state.artifact.signature)
        state.check = self.check_json(state, cases, entry.data["provider"])
        vectors = entry.folder / "vectors.npz"
        state.vectors = vectors if vectors.is_file() else None
        if state.check["held"] or not self.recipe.blame:
            self.finish(state, "passed" if state.check["held"] else "failed")
        else:
            state.phase = "failing"

    def start_blame(self, state: StepState) -> None:
        """Look for the layer that made a check fail, or take what is known of it."""
        assert state.check is not None
        assert state.artifact is not None
        case, samples = blaming.failing(state.check["cases"]) or ({}, [])
        if not case:
            self.finish(state, "failed")
            return
        if not get_runner(state.artifact.format).inside:
            state.blame = blaming.untold(f"{state.artifact.format} artifacts cannot be looked into")
            self.finish(state, "failed")
            return
        before = [*reversed(self.plan.ancestors(state.step.id)[:-1]), SOURCE]
        chain = [(name, a) for name in before if (a := self.artifact_of(name)) is not None]
        artifacts = [a for _, a in chain]
        state.blame_key = keys.blame_key(self.recipe, state.artifact, artifacts, self.judge_key, case, samples)
        entry = self.cache.get(state.blame_key)
        if entry is not None:
            state.blame = entry.data["blame"]
            self.finish(state, "failed")
        elif self.can_start(f"blame:{state.step.id}"):
            modules = {m for _, a in chain[:1] for m in get_runner(a.format).modules}
            self.submit(
                f"blame:{state.step.id}",
                blaming.task(case, samples, state.artifact, chain, self.recipe.check_on),
                {*modules, *get_runner(state.artifact.format).modules},
                blaming.LIMIT_SECONDS,
            )
            state.phase = "blaming"

    def take_blame(self, state: StepState, result: Mapping[str, Any]) -> None:
        """The layer, where one was found; a search that fails leaves the step's verdict as it is."""
        if result["ok"]:
            state.blame = self.cache.put(state.blame_key, {"blame": result["blame"]}).data["blame"]
        else:
            state.blame = blaming.untold(f"the search for the layer failed: {result['error']['what']}")
        state.seconds["check"] += result["seconds"]
        self.finish(state, "failed")

    def set_deferred(self, state: StepState, result: Mapping[str, Any], staged: Path | None) -> None:
        """No verdict here: keep the reason, what the target needs to give one, and the nearest verdict there is."""
        assert staged is not None
        error = self.located(from_json(result["deferred"]), state.step)
        state.error = {**error.to_json(), "phase": "check"}
        state.check = self.check_json(state, [], None)
        # Not into the cache: the next run may find the device there.
        state.vectors = self.scratch / "vectors" / f"{digest_of(state.step.id)[:16]}.npz"
        state.vectors.parent.mkdir(exist_ok=True)
        (staged / "vectors.npz").replace(state.vectors)
        before = [self.states[a].to_json() for a in self.plan.ancestors(state.step.id)[:-1]]
        state.deferred = {"beside": beside(before), "cases": [c.to_json() for c in self.cases]}
        self.finish(state, "deferred")

    def check_json(self, state: StepState, cases: list[dict[str, Any]], provider: str | None) -> dict[str, Any]:
        check = state.step.check
        return {
            "against": SOURCE,
            "data": self.recipe.check_on,
            "precision": check.precision,
            "lossy": check.lossy,
            "bounds": [str(bound) for bound in check.bounds],
            "stated_by": list(check.stated_by),
            "metrics": [metric.to_json() for metric in self.recipe.metrics],
            "waived": check.waived,
            "provider": provider,
            "held": bool(cases) and all(c["held"] for c in cases),
            "cases": cases,
        }

    def races(self) -> bool:
        """Measure speeds, one race at a time while nothing else runs; whether there is something to wait for."""
        while self.heats and not self.busy:
            parent_id, steps = next(iter(self.heats.items()))
            there = [self.states[s.id] for s in steps if self.states[s.id].proven]
            if not there or not (parent_id == SOURCE or self.states[parent_id].proven):
                del self.heats[parent_id]
                continue
            entry = self.cache.get(self.race_key(parent_id, there))
            if entry is None:
                artifacts = {parent_id: self.artifact_of(parent_id), **{s.step.id: s.artifact for s in there}}
                self.submit(f"race:{parent_id}", {
                    "task": "race", "artifacts": {name: a.to_json() for name, a in artifacts.items() if a},
                    "check_on": self.recipe.check_on, "case": self.cases[0].to_json(),
                    "seconds": SECONDS * len(artifacts), "out": str(self.stage(f"race:{parent_id}")),
                    "rough": not self.is_judged_by_speed(there),
                }, {"numpy"})  # fmt: skip
                return True
            self.set_raced(parent_id, entry.data)
        return bool(self.heats)

    def race_key(self, parent_id: str, there: Sequence[StepState]) -> str:
        artifacts = [a for a in (self.artifact_of(parent_id), *(s.artifact for s in there)) if a]
        key = keys.race_key(self.recipe, artifacts, self.judge_key, self.cases[0], self.threads)
        return digest_of([key, self.is_judged_by_speed(there)])

    def is_judged_by_speed(self, states: Sequence[StepState]) -> bool:
        """Whether something fails by how fast one of these steps is, or how much memory it takes."""
        timed = (gate.timed for s in states for gate, _ in self.plan.gates_of(s.step))
        return self.recipe.baseline is not None or any("faster" in s.step.must for s in states) or any(timed)

    def set_raced(self, parent_id: str, race: Mapping[str, Any]) -> None:
        for step in self.heats.pop(parent_id):
            state = self.states[step.id]
            if state.proven:
                speed = speed_of(parent_id, step.id, race)
                state.speed = speed if step.parent == parent_id else state.speed
                state.source_speed = speed if parent_id == SOURCE else state.source_speed

    def take_race(self, parent_id: str, result: Mapping[str, Any]) -> None:
        there = [s for s in (self.states[step.id] for step in self.heats[parent_id]) if s.proven]
        if result["ok"]:
            race = {name: result[name] for name in ("entrants", "sizes", "threads", "samples")}
            self.set_raced(parent_id, self.cache.put(self.race_key(parent_id, there), race).data)
            return
        del self.heats[parent_id]
        for state in there:  # what was proven stays proven; a step that must be faster fails by it
            state.untimed = f"its speed could not be measured: {result['error']['what']}"

    def measure(self) -> None:
        """What `benchmark:` asks for, one race after the other while nothing else runs."""
        spec = self.recipe.benchmark
        if spec is None or self.source is None:
            return
        from optkit.benchmarking import empty, failed, heats_of

        states = [self.states[i] for i in self.plan.deliver]
        there = [s for s in states if s.proven and s.step.use.is_timed(s.step.options)]
        found = self.benchmark = empty(spec.against, [s.step.id for s in states if s not in there])
        for heat in heats_of(self.recipe, self.source, there, self.judge_key, self.cases[0], self.threads, self.dims):
            entry = self.cache.get(heat.key)
            if entry is None:
                self.submit("bench:", heat.task(self.recipe.check_on, str(self.stage("bench:"))), {"numpy"})
                while "bench:" in self.busy:
                    message = self.pool.wait(0.1)
                    if message is not None:
                        self.take(message)
                result = self.raced.pop()
                if not result["ok"]:
                    found["error"] = failed(result["error"])
                    return
                entry = self.cache.put(heat.key, {"entrants": result["entrants"]})
            found["rows"] += heat.rows(entry.data["entrants"])

    def judge_limits(self) -> None:
        """Hold each step against what it must be beside its parent, and against the gates on it."""
        for state in self.states.values():
            parent = self.artifact_of(state.step.parent)
            if state.step.must and state.proven and state.artifact and parent:
                state.musts = musts(
                    state.step, model_bytes(state.artifact), model_bytes(parent), state.speed, state.untimed
                )
            state.gates = judged(self.plan.gates_of(state.step), self.measured(state))
            failed = any(not m["held"] for m in state.musts) or any(g["status"] == "failed" for g in state.gates)
            if failed:
                self.finish(state, "failed")

    def measured(self, state: StepState) -> Measured | None:
        """What the gates on a step are held against; None where it does not hold."""
        if state.artifact is None or not state.usable:
            return None
        parent = self.artifact_of(state.step.parent)
        made = [self.states[step_id].made_seconds for step_id in self.plan.ancestors(state.step.id)]
        known = [seconds for seconds in made if seconds is not None]
        return Measured(
            size_bytes=model_bytes(state.artifact) or state.artifact.size_bytes,
            source_bytes=model_bytes(self.source) if self.source else None,
            parent_bytes=model_bytes(parent) if parent else None,
            seconds=sum(known) if len(known) == len(made) else None,
            speeds={"source": state.source_speed, "parent": state.speed},
            scores=next((c.get("scores") or {} for c in (state.check or {}).get("cases", ())), {}),
            untimed=state.untimed,
            here=state.proven,
        )

    def source_modules(self) -> set[str]:
        extra = {"optkit.formats.warm_transformers"} if isinstance(self.recipe.model, HuggingFaceSource) else set()
        return {*get_runner(self.recipe.source_format).modules, *extra}

    def warm(self) -> None:
        """Let workers that would idle import what the coming steps need."""
        if not self.busy:
            return
        coming: dict[str, None] = {}
        for state in self.states.values():
            if state.phase == "waiting":
                coming |= dict.fromkeys(state.step.use.modules if state.step.python is None else ())
                if state.step.parent == SOURCE:
                    coming |= dict.fromkeys(self.source_modules())
            if state.phase != "done":
                coming |= dict.fromkeys(get_runner(state.step.use.target).modules)
        while self.pool.free:
            self.pool.start()
            module = self.pool.cold(coming)
            if module is None:
                return
            task = f"warm:{self.warmed}"
            self.warmed += 1
            self.pool.warm(task, module, self.scratch / f"warm-{self.warmed}")
            self.busy.add(task)

    # --- tasks and what becomes of them

    def stage(self, task: str) -> Path:
        self.staging[task] = self.cache.stage()
        return self.staging[task]

    def submit(
        self,
        task: str,
        step: dict[str, Any],
        loads: Any,
        limit: float = _SETUP_LIMIT_SECONDS,
        python: str | None = None,
    ) -> None:
        signature = self.source.signature if self.source else None
        recipe = self.recipe
        common = {
            "inputs": [t.to_json() for t in (signature.inputs if signature else recipe.inputs)],
            "outputs": [t.name for t in signature.outputs] if signature else list(recipe.outputs),
            "dims": keys.dims_json(self.dims), "base": str(recipe.base), "seed": recipe.seed, "device": recipe.device,
            "threads": self.threads, "scratch": str(self.scratch),
            "datasets": {name: spec.model_dump(mode="json", exclude_unset=True) for name, spec in recipe.data.items()
                         if name in self.data_keys},
        }  # fmt: skip
        phase, _, step_id = task.partition(":")
        folder = self.out / "logs" / task.replace(":", "-")
        self.listen(StepStarted(step_id or SOURCE, phase))
        self.pool.submit(task, {**common, **step}, folder, limit, python, loads)
        self.busy.add(task)

    def take(self, message: Message) -> None:
        phase, _, step_id = message.task.partition(":")
        if message.kind == "progress":
            self.listen(StepProgress(step_id or SOURCE, message.data["progress"], message.data["fraction"]))
            return
        self.busy.discard(message.task)
        result, staged = message.data, self.staging.pop(message.task, None)
        try:
            if phase == "warm":
                return
            if phase == "bench":
                self.raced.append(result)
            elif phase == "race":
                self.take_race(step_id, result)
            elif phase == "blame":
                self.take_blame(self.states[step_id], result)
            elif phase in ("run", "check"):
                self.take_step(self.states[step_id], phase, result, staged)
            elif not result["ok"]:
                raise self.located(
                    _of_setup(from_json(result["error"]), self.out / "logs" / phase / "step.json", phase)
                )
            else:
                self.take_setup(phase, result, staged)
        finally:
            if staged is not None and staged.exists():
                shutil.rmtree(staged, ignore_errors=True)

    def take_setup(self, phase: str, result: Mapping[str, Any], staged: Path | None) -> None:
        if phase == "source":
            key = keys.describe_key(self.recipe, self.unsigned)
            self.set_source(self.cache.put(key, {"signature": result["signature"], "seconds": result["seconds"]}))
            return
        assert self.source is not None
        if phase == "data":
            key = keys.datasets_key(self.plan, self.data_keys, self.source)
            self.data_info = self.cache.put(key, {"datasets": result["datasets"]}).data["datasets"]
        else:
            key = keys.record_key(self.recipe, self.source, self.judge_key, self.cases)
            self.record = self.cache.put(
                key, {"noise": result["noise"], "provider": result["provider"], "seconds": result["seconds"]}, staged
            )

    def take_step(self, state: StepState, phase: str, result: Mapping[str, Any], staged: Path | None) -> None:
        state.seconds[phase] = result["seconds"]
        state.replay = str(self.out / "logs" / f"{phase}-{state.step.id}" / "step.json")
        if not result["ok"]:
            error = from_json(result["error"])
            if error.subject.startswith("metric."):  # what the source or the labels cannot feed fails every step alike
                raise self.located(error)
            error = self.located(error, state.step)
            state.error = {**error.to_json(), "phase": phase}
            self.finish(state, "error")
        elif phase == "run":
            data = {k: result[k] for k in ("artifact", "notes", "seconds", "peak_bytes")}
            self.set_made(state, self.cache.put(state.key, data, staged, result["digests"]))
            self.cache.drop_partial(state.key)
        elif result.get("deferred"):
            self.set_deferred(state, result, staged)
        else:
            assert state.artifact is not None
            assert self.source is not None
            parent = self.runnable_parent(state.step)
            key = keys.check_key(self.recipe, state.artifact, self.source, parent, self.judge_key, self.cases)
            known = self.metric_keys(state)
            for name, score in result["scores"].items():
                if "problem" not in score and known[name] == state.metric_keys[name]:  # not if a file changed meanwhile
                    self.cache.put(known[name], {"score": score})
            entry = self.cache.get(key)
            if entry is None:
                entry = self.cache.put(key, {"cases": result["cases"], "provider": result["provider"]}, staged)
            self.set_checked(state, entry, {**self.scores_of(state), **result["scores"]})

    def located(self, error: OptkitError, step: Step | None = None) -> OptkitError:
        """The error with the place in the recipe that it is about."""
        subject = error.subject
        if step and (not subject or subject.startswith(("with", "data", "from"))) and subject != f"data.{step.data}":
            subject = f"steps.{step.id}" + (f".{subject}" if subject else "")
        elif step and subject.partition(".")[0] not in self.recipe.document.data:  # the recipe left that to optkit
            subject = f"steps.{step.id}"
        error.where = self.recipe.place_of(subject) if subject else None
        return error

    def finish(self, state: StepState, status: str) -> None:
        state.phase, state.status = "done", status
        seconds = sum(state.seconds.values())
        text = state.blocked_by or (state.error or {}).get("what", "")
        cached = state.cached["run"] and (state.cached["check"] or status == "waived")
        self.listen(StepFinished(state.step.id, status, seconds, cached, text, state.to_json()))  # type: ignore[arg-type]

    # --- the report

    def report(self, code: int | None) -> Report:
        source = self.source
        steps = [s.to_json() for s in self.states.values()]
        data: dict[str, Any] = {
            "schema": SCHEMA, "optkit": __version__, "name": self.recipe.name,
            "recipe": {"path": str(self.recipe.document.file) if self.recipe.document.file else None,
                       "digest": digest_of({k: v for k, v in self.recipe.document.data.items() if k != "baseline"}),
                       "set": list(self.recipe.document.assigned), "only": list(self.plan.chosen)},
            "started": self.began.isoformat(timespec="seconds"), "seconds": 0.0,
            "environment": keys.environment(self.plan),
            "source": {"format": self.recipe.source_format, "digest": self.unsigned.digest,
                       "signature": source.signature.to_json() if source and source.signature else None,
                "dims": keys.dims_json(self.dims),
                       "noise": self.record.data.get("noise") if self.record else None,
                       "provider": self.record.data.get("provider") if self.record else None},
            "data": self.data_info or {}, "steps": steps, "deliver": [],
            "benchmark": self.benchmark, "baseline": None,
            "exit_code": code if code is not None else exit_code_of(steps),
        }  # fmt: skip
        for step_id in self.plan.deliver if code is None else ():  # an interrupt leaves what is there
            data["deliver"].append(self.hand_over(self.states[step_id], data))
        if self.recipe.baseline is not None and code is None:
            from optkit.baseline import held_against

            data["baseline"] = held_against(self.recipe, data, self.plan.chosen)
            data["exit_code"] = exit_code_of(steps, data["baseline"])
        if self.benchmark and self.benchmark["error"]:
            data["exit_code"] = max(data["exit_code"], self.benchmark["error"]["exit_code"])
        data["seconds"] = round(time.perf_counter() - self.started, 3)
        return Report(data)

    def hand_over(self, state: StepState, run: Mapping[str, Any]) -> dict[str, Any]:
        step_id = state.step.id
        folder = self.out / step_id
        row = {
            "step": step_id,
            "status": state.status,
            "format": state.step.use.target,
            "path": None,
            "size_bytes": None,
        }
        if not (state.proven or state.status == "deferred") or state.artifact is None:
            clear(folder)
            return row
        chain = [self.states[a].to_json() for a in self.plan.ancestors(step_id)]
        deliver(state.artifact, folder, step=state.to_json(), chain=chain, run=run, vectors=state.vectors)
        return {**row, "path": str(folder), "size_bytes": state.artifact.size_bytes}


def _of_setup(error: OptkitError, step: Path, phase: str) -> OptkitError:
    """An error met before the first step; a crash or a bug in a backend is told with what was going on."""
    if isinstance(error, StepError):
        doing = {"source": "reading the model", "data": "reading the data", "record": "running the source model"}[phase]
        error.what = f"{doing}: {error.what}"
        again = f"optkit replay {step} repeats it alone"
        error.hint = error.hint.replace("optkit replay repeats it alone", again) or again
    return error


def _disk_error(error: OSError, out: Path, cache: Cache) -> OptkitError:
    places = [("the output folder", out, "--out DIR"), ("the cache", cache.root, "--cache DIR"), temporary_files()]
    return disk_error(error, places) or UnavailableError(
        f"{type(error).__name__}: {error}", hint="check the folder and its permissions"
    )
