"""How a plan is made: each step resolved to passes, options and a check, with every mistake noted on the way."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ValidationError

from optkit.envs import environments
from optkit.errors import Problem, RecipeError, UserError, did_you_mean
from optkit.parity.bounds import Bound, BoundError, parse_bound
from optkit.planning import Check, Plan, Step
from optkit.plans.gateplan import check_gates, read_gates
from optkit.plans.metricplan import check_labels, check_metrics
from optkit.plans.named import named_files
from optkit.plans.parts import check_file, check_parts
from optkit.plugin import Options, Pass, Settings
from optkit.recipe import SOURCE, Recipe, StepSpec
from optkit.registry import PRECISIONS, NoRouteError, conversion, formats, passes, route, runners
from optkit.reports import DRAWN
from optkit.spec.dataspec import label_names
from optkit.spec.metricspec import bound_table
from optkit.spec.reading import explain
from optkit.spec.runtimes import CODE, as_json, read_settings
from optkit.spec.yamlread import Key

_RESERVED = ("logs", "report.json", *DRAWN)  # what else lies in the output folder, beside the deliveries
_BOUNDS = 'add check: ["cosine >= 0.99"], or waive: with the reason'


@dataclass
class Planner:
    """gives: the format that comes out of each step, known also where the step itself has a mistake."""

    recipe: Recipe
    problems: list[Problem] = field(default_factory=list)
    gives: dict[str, str] = field(default_factory=dict)
    steps: dict[str, Step] = field(default_factory=dict)
    plain: dict[str, Check] = field(default_factory=dict)
    """The checks of steps without what their runtime settings make coarser: the next file is not opened with these."""

    def note(self, key: Key, what: str, hint: str, *about: Key, code: str = Problem.code) -> None:
        """Note a mistake at `key`, unless one in any key of `about` is told already."""
        told = self.recipe.faults
        if any(fault[: len(k)] == k or k[: len(fault)] == fault for k in about for fault in told):
            return
        problem = Problem(what, self.recipe.place(*key), hint, code)
        if problem not in self.problems:
            self.problems.append(problem)

    def plan(self) -> Plan:
        check_parts(self.recipe, self.note)
        check_metrics(self.recipe, self.note)
        if ("model",) not in self.recipe.faults and self.recipe.source_format in runners():
            self.gives[SOURCE] = self.recipe.source_format
        for index, spec in self.in_order():
            if ("steps", index) not in self.recipe.faults:
                self.build(index, spec)
        deliver = self.deliver()
        overall = read_gates(self.recipe.gate, ("gate",), "gate: ", bound_table(self.recipe.metrics), self.note)
        check_gates(self.recipe, overall, self.steps, deliver, self.note)
        if self.recipe.baseline is not None:
            from optkit.comparing.baseline import check_baseline  # most recipes have none, and planning starts fast

            check_baseline(self.recipe, deliver, self.note)
        self.benchmark(deliver)
        if self.problems:
            raise RecipeError(self.problems)
        return Plan(self.recipe, tuple(self.steps.values()), deliver, gates=overall)

    @property
    def nameless(self) -> list[Key]:
        """Where a step's id could not be read: it may be the one that a reference is to."""
        return [("steps", n, "id") for n, spec in enumerate(self.recipe.steps) if "[" in spec.id]

    def deliver(self) -> tuple[str, ...]:
        named = [s.id for s in self.recipe.steps]
        for index, step_id in enumerate(self.recipe.deliver):
            if named and step_id not in named:
                what = f"deliver: there is no step {step_id!r}"
                self.note(("deliver", index), what, did_you_mean(step_id, named), *self.nameless)
        parents = {s.parent for s in self.steps.values()}
        return self.recipe.deliver or tuple(s for s in self.steps if s not in parents)

    def in_order(self) -> Iterator[tuple[int, StepSpec]]:
        """Every step after its parent, as written where that is free; those that have none, noted, come last."""
        first: dict[str, tuple[int, StepSpec]] = {}
        repeated: list[tuple[int, StepSpec]] = []
        for index, spec in enumerate(self.recipe.steps):
            key: Key = ("steps", index, "id")
            if spec.id == SOURCE:
                self.note(key, f"{SOURCE!r} is the source model's own id", "call the step otherwise")
            elif spec.id.lower() in _RESERVED:
                self.note(key, f"step {spec.id}: the output folder has a {spec.id} of its own", "call it otherwise")
            if spec.id in first:
                place = self.recipe.place("steps", first[spec.id][0], "id")
                hint = f"the first is at {place}; rename one" if place else "rename one"
                self.note(key, f"two steps are called {spec.id!r}", hint)
                repeated.append((index, spec))
            else:
                first[spec.id] = (index, spec)
        waiting, done = dict(first), {SOURCE}
        while ready := next((s for s, (_, spec) in waiting.items() if spec.from_ in done), None):
            done.add(ready)
            yield waiting.pop(ready)
        self.explain_waiting(waiting, [*first, SOURCE])
        yield from (*waiting.values(), *repeated)

    def explain_waiting(self, waiting: Mapping[str, tuple[int, StepSpec]], known: list[str]) -> None:
        """Why steps never got their turn: a parent that is not there, or a circle. What hangs on them is no mistake."""
        for step_id, (index, spec) in waiting.items():
            key: Key = ("steps", index, "from")
            if spec.from_ not in known:
                near = did_you_mean(spec.from_, [k for k in known if k != step_id])
                self.note(key, f"step {step_id}: there is no step {spec.from_!r}", near, key, *self.nameless)
                continue
            trail, at = [step_id], spec.from_
            while at in waiting and at not in trail:
                trail.append(at)
                at = waiting[at][1].from_
            if at == step_id and step_id == min(trail):
                circle = " -> ".join([*reversed(trail), trail[-1]])
                hint = f"one of them must come from {SOURCE!r} or from a step outside"
                self.note(key, f"these steps wait for one another: {circle}", hint, key)

    def build(self, index: int, spec: StepSpec) -> None:
        """Add the step, after the implied ones on its way; with a mistake in it, only note that."""
        noted = len(self.problems)
        start = None if ("steps", index, "from") in self.recipe.faults else self.gives.get(spec.from_)
        chain = self.chain(index, spec, start)
        use = chain[-1] if chain else passes().get(spec.use or "")
        if use is not None:
            self.gives[spec.id] = use.target
        elif spec.to in formats():
            self.gives[spec.id] = str(spec.to)
        options = self.options(index, spec, use) if use else None
        written = None
        if is_function(spec.python):
            what = (
                f"step {spec.id}: python: names the interpreter a step runs in, not a function, got {spec.python!r:.80}"
            )
            hint = f"for a training function of yours: use: torch.train, with: {{call: {spec.python!r}}}"
            self.note(("steps", index, "python"), what, hint)
        elif spec.python is not None:
            written = check_file(
                self.recipe, spec.python, self.note, ("steps", index, "python"), f"step {spec.id}: python"
            )
        if use and options is not None:
            self.files(index, spec, use, options)
            self.tried(index, spec, use, options)
            self.budget(index, spec, use, options)
        data = self.data_of(index, spec, use, options)
        stated = self.bounds(index, spec, use)
        table = bound_table(self.recipe.metrics)
        gates = read_gates(spec.gate, ("steps", index, "gate"), f"step {spec.id}: ", table, self.note)
        if use and options is not None and "faster" in spec.must and not use.is_timed(options):
            what = f"step {spec.id}: how fast it is cannot be seen here: {use.name} makes it for another runtime"
            self.note(("steps", index, "must"), what, "put must: [faster] on a step that this machine runs")
        runtime = self.runtime(index, spec, use)
        parent = self.steps.get(spec.from_)
        if len(self.problems) > noted or not chain or options is None or not (parent or spec.from_ == SOURCE):
            return
        at, before = spec.from_, self.plain.get(spec.from_)
        for passed in chain[:-1]:
            check, default, python = check_of(passed, (), "", before), passed.options(), interpreter(passed, written)
            if check.unbounded:  # then what the recipe says of the end of this way holds on it too
                check = check_of(passed, stated, spec.id, before, spec.waive)
            twin = next((s for s in self.steps.values() if s.parent == at and s.use is passed and s.check == check
                         and s.options == default and s.data is None and s.python == python),
                        None)  # fmt: skip
            step = twin or Step(
                id=self.free_id(f"{spec.id}.{passed.target}"), use=passed, options=default, parent=at, check=check,
                timeout_seconds=spec.timeout or passed.timeout_seconds, python=python,
                environment=None if written else passed.environment, on_target=spec.on_target, implied=True,
                where=self.recipe.place("steps", index),
            )  # fmt: skip
            self.steps[step.id] = step
            at, before = step.id, self.plain.setdefault(step.id, step.check)
        check = self.plain[spec.id] = check_of(chain[-1], stated, spec.id, before, spec.waive)
        if runtime is not None and runtime.arithmetic() in PRECISIONS:
            check = replace(check, precision=_coarser(check.precision, runtime.arithmetic()))
        elif runtime is not None and runtime.arithmetic() == "runtime":
            check = replace(check, lossy=True, floating=False, as_parent=False)
        elsewhere = (
            spec.on_target and check.as_parent and not check.bounds
        )  # there its parent's answers are not at hand
        if elsewhere or (check.unbounded and before is not None and before.lossy and chain[-1].fidelity != "lossy"):
            what = f"step {spec.id}: nothing says how near it has to be: the bounds of what it is made from are waived"
            self.note(("steps", index), what, _BOUNDS, ("steps", index, "check"), code="OPK-213")
            return
        self.steps[spec.id] = Step(
            id=spec.id, use=chain[-1], options=options, parent=at, data=data, on_target=spec.on_target,
            check=check, must=tuple(spec.must), gates=gates, runtime=as_json(runtime) if runtime else {},
            timeout_seconds=spec.timeout or chain[-1].timeout_seconds, python=interpreter(chain[-1], written),
            environment=None if written else chain[-1].environment,
            where=self.recipe.place("steps", index),
        )  # fmt: skip

    def benchmark(self, deliver: tuple[str, ...]) -> None:
        """Note what `benchmark:` names and nothing of the recipe is, and settings that no runner knows."""
        spec = self.recipe.benchmark
        if spec is None:
            return
        if spec.against not in (SOURCE, *deliver):
            what = f"benchmark.against: {spec.against!r} is not delivered"
            self.note(("benchmark", "against"), what, did_you_mean(spec.against, [SOURCE, *deliver]), ("steps",))
        made = {self.recipe.source_format, *(self.steps[i].use.target for i in deliver if i in self.steps)}
        for format_, settings in spec.settings.items():
            key: Key = ("benchmark", "settings", format_)
            if format_ not in made:
                what = f"benchmark.settings: nothing that is measured is {format_!r}"
                self.note(key, what, did_you_mean(format_, made), ("steps",), ("model",), code=CODE)
                continue
            for inner, what, hint in read_settings(format_, settings, f"benchmark.settings.{format_}.")[1]:
                self.note((*key, *inner), what, hint, code=CODE)
        named = list(self.recipe.dims.values())
        for number, size in enumerate(spec.batch):
            if named and all(not dim.min <= size <= dim.max for dim in named):
                what = f"benchmark.batch: {size} is in the range of no dim"
                self.note(("benchmark", "batch", number), what, "measure within the sizes of dims:", ("dims",))

    def runtime(self, index: int, spec: StepSpec, use: Pass | None) -> Settings | None:
        """The typed runtime settings of a step, None where it states none."""
        if not spec.runtime or use is None or use.target not in runners():
            return None
        settings, faults = read_settings(use.target, spec.runtime, f"step {spec.id}: runtime.")
        for inner, what, hint in faults:
            self.note(("steps", index, "runtime", *inner), what, hint, code=CODE)
        if settings is not None and settings.arithmetic() == "runtime" and not spec.check and spec.waive is None:
            what = (
                f"step {spec.id}: with these settings the runtime chooses what it computes in, so it must state bounds"
            )
            hint = 'add check: ["cosine >= 0.999"], or name the precision'
            self.note(("steps", index, "runtime"), what, hint, ("steps", index, "check"), code="OPK-213")
        return settings

    def free_id(self, wanted: str) -> str:
        """`wanted`, or with a number where a step has that id already."""
        taken = {*self.steps, *(s.id for s in self.recipe.steps), *_RESERVED}
        tries = (wanted if n == 1 else f"{wanted}-{n}" for n in range(1, len(taken) + 2))
        return next(name for name in tries if name not in taken)

    def chain(self, index: int, spec: StepSpec, start: str | None) -> tuple[Pass, ...]:
        """The passes from what the parent gives (None: unknown) to what the step asks for; () with a mistake noted."""
        key: Key = ("steps", index)
        if spec.to is spec.use is None and is_function(spec.python):
            return ()  # told of `python:`
        if (spec.to is None) == (spec.use is None):
            both = ", not both" if spec.to is not None else ""
            what = f"step {spec.id}: needs either `to: FORMAT` or `use: PASS`{both}"
            self.note(key, what, "to: onnx, for example", (*key, "to"), (*key, "use"))
            return ()
        if spec.use is not None:
            found = self.named(index, spec, start)
        else:
            found = self.routed(index, spec, start)
        if found and found[-1].target not in runners():
            what = f"step {spec.id}: no runner opens {found[-1].target}, so it could not be checked"
            self.note(key, what, "install the plug-in that brings the runner")
            return ()
        return found

    def named(self, index: int, spec: StepSpec, start: str | None) -> tuple[Pass, ...]:
        use = passes().get(spec.use or "")
        key: Key = ("steps", index, "use")
        if use is None:
            what = f"step {spec.id}: there is no pass {spec.use!r}"
            function = (spec.use or "").removeprefix("python:").strip()
            hint = f"for a training function of yours: use: torch.train, with: {{call: {function!r}}}"
            self.note(key, what, hint if is_function(function) else did_you_mean(spec.use or "", passes()), key)
        elif start is not None and use.source != start:
            place: Key = ("steps", index, "from")
            what = f"step {spec.id}: {use.name} takes {use.source}, but {spec.from_!r} gives {start}"
            hint = f"take it from a step that gives {use.source}, or convert first: to: {use.source}"
            self.note(place if place in self.recipe.document.places else key, what, hint)
            return ()
        return (use,) if use else ()

    def routed(self, index: int, spec: StepSpec, start: str | None) -> tuple[Pass, ...]:
        key, target = ("steps", index, "to"), spec.to or ""
        if target not in formats():
            what = f"step {spec.id}: there is no format {target!r}"
            self.note(key, what, did_you_mean(target, formats()), key)
        elif target == start:
            what = f"step {spec.id}: {spec.from_!r} is {start} already"
            self.note(key, what, "name the pass you want with `use:`")
        elif start is not None:
            try:
                return route(start, target)
            except NoRouteError as error:
                self.note(key, f"step {spec.id}: {error.what}", error.hint, code=error.code)
        return ()

    def options(self, index: int, spec: StepSpec, use: Pass) -> Options | None:
        try:
            return use.options.model_validate(spec.with_)
        except ValidationError as error:
            key: Key = ("steps", index, "with")
            for inner, what, hint in explain(error, spec.with_, f"step {spec.id} ({use.name}): ", use.options):
                self.note((*key, *inner), what, hint, key)
            return None

    def tried(self, index: int, spec: StepSpec, use: Pass, options: Options) -> None:
        """Note a runtime on which a step cannot measure its candidates."""
        target = use.tries(options)
        try:
            if target is not None:
                conversion(use.target, target)
        except UserError as error:
            self.note(("steps", index, "with", "runtime"), f"step {spec.id}: {error.what}", error.hint)

    def files(self, index: int, spec: StepSpec, use: Pass, options: Options) -> None:
        """Note a file that the options name and that is not there."""
        try:
            named_files(use, options, self.recipe.base)
        except UserError as error:
            self.note(("steps", index, "with"), f"step {spec.id}: {error.what}", error.hint)
        except (OSError, ValueError) as error:  # a name too long, a null byte
            what = f"step {spec.id}: a path of its options cannot be used: {error}"
            self.note(("steps", index, "with"), what, "paths start from the recipe's folder")

    def data_of(self, index: int, spec: StepSpec, use: Pass | None, options: Options | None) -> str | None:
        name, key = spec.data, ("steps", index, "data")
        known = self.recipe.data
        if name is None:
            if use and options is not None and use.wants_data(options):
                hint = f"add `data: NAME`; datasets: {', '.join(known) or 'none yet, add data:'}"
                self.note(("steps", index), f"step {spec.id}: {use.name} needs data to fit on", hint, key)
        elif use and use.needs_data is False:
            self.note(key, f"step {spec.id}: {use.name} takes no data", "remove `data:`")
        elif use and options is not None and not use.wants_data(options):
            self.note(key, f"step {spec.id}: {use.name} takes no data with these options", "remove `data:`")
        elif name not in known:
            what = f"step {spec.id}: there is no dataset {name!r}"
            self.note(key, what, did_you_mean(name, known) or "add it under data:", ("data", name))
        elif name == self.recipe.check_on or known[name] == known.get(self.recipe.check_on):
            what = f"step {spec.id} would be fitted on {name!r}, the data it is judged on"
            self.note(key, what, "give it a dataset of its own; check_on: must name other samples", code="OPK-231")
        return name

    def budget(self, index: int, spec: StepSpec, use: Pass, options: Options) -> None:
        """Note what is wrong with a budget's bounds; labels are those of the data that the step is fitted on."""
        for position, text in enumerate(use.budget(options)):
            key: Key = ("steps", index, "with", "budget", position)
            title = f"step {spec.id} ({use.name}): budget: "
            data = self.recipe.data.get(spec.data or "")
            bound = self.bound(text, key, title, spec.data or "")
            metric = next((m for m in self.recipe.metrics if bound and m.name == bound.info.task), None)
            if metric is not None and data is not None:
                check_labels(metric, spec.data or "", label_names(data), key, self.note, title)

    def bound(self, text: str, key: Key, title: str, dataset: str) -> Bound | None:
        """What a text bounds; None, with a mistake noted, where that is nothing. dataset: which has the labels."""
        try:
            bound = parse_bound(text, bound_table(self.recipe.metrics))
        except BoundError as error:
            self.note(key, f"{title}{error}", error.hint, ("metric",))
            return None
        data = self.recipe.data.get(dataset)
        plain = bound.declared is None and bound.metric.startswith("accuracy")
        if plain and data is not None and not label_names(data):
            hint = f"add `label: NAME` to data.{dataset}"
            self.note(key, f"{title}{bound.metric} needs labels, and data.{dataset} has none", hint)
        if bound.output and self.recipe.outputs and bound.output not in self.recipe.outputs:
            what = f"{title}{bound} names no output of the model"
            self.note(key, what, did_you_mean(bound.output, self.recipe.outputs), ("outputs",))
        return bound

    def bounds(self, index: int, spec: StepSpec, use: Pass | None) -> tuple[Bound, ...]:
        """The bounds a step states."""
        stated = [
            bound for position, text in enumerate(spec.check)
            if (bound := self.bound(text, ("steps", index, "check", position), f"step {spec.id}: ",
                                    self.recipe.check_on)) is not None
        ]  # fmt: skip
        if spec.waive is not None and spec.check:
            self.note(("steps", index, "waive"), f"step {spec.id}: has both check: and waive:", "keep one")
        if use and use.fidelity == "lossy" and not spec.check and spec.waive is None:
            what = f"step {spec.id}: {use.name} loses accuracy, so it must state its bounds"
            self.note(
                ("steps", index), what, _BOUNDS, ("steps", index, "check"), ("steps", index, "waive"), code="OPK-213"
            )
        return tuple(stated)


def is_function(text: str | None) -> bool:
    """Whether a name is that of a function of the user's, as in train.py:train."""
    return re.search(r"\.py:\w+$", text or "") is not None


def interpreter(use: Pass, written: Path | None) -> str | None:
    """The interpreter a step runs in: the one its `python:` names, else that of the environment its pass wants."""
    if written is not None:
        return str(written)
    return str(environments.find(use.environment).python) if use.environment else None


def check_of(use: Pass, stated: tuple[Bound, ...], step_id: str, before: Check | None,
             waived: str | None = None) -> Check:  # fmt: skip
    """The check on a step: the bounds it states, and those stated before it on metrics it does not bound itself."""
    mine = {(b.metric, b.output) for b in stated}
    inherited = zip(before.bounds, before.stated_by, strict=True) if before else ()
    kept = [(bound, who) for bound, who in inherited if (bound.metric, bound.output) not in mine]
    lossy, after_lossy = use.fidelity == "lossy", before is not None and before.lossy
    floating = (use.floating or not lossy) and (before is None or before.floating)
    return Check(
        bounds=(*stated, *(bound for bound, _ in kept)),
        stated_by=(*(step_id for _ in stated), *(who for _, who in kept)),
        precision=_coarser(before.precision if before else "float32", use.precision),
        lossy=lossy or after_lossy,
        waived=waived,
        floating=floating,
        as_parent=after_lossy and floating and not lossy and not stated,
    )


def _coarser(one: str, other: str | None) -> str:
    return max(one, other or one, key=PRECISIONS.index)
