"""Recipe to Plan: what will run, in which order, and how each result will be judged.

Planning is pure: it opens no model, imports no backend and touches no device. It finds every mistake that can be found
so, all of them at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from optkit.dataspec import files as data_files
from optkit.errors import Location, Problem, RecipeError, UserError, did_you_mean
from optkit.parity.bounds import Bound, BoundError, parse_bound
from optkit.plugin import Options, Pass
from optkit.recipe import SOURCE, OnnxSource, OpenVINOSource, Recipe, StepSpec, TorchSource, explain
from optkit.registry import NoRouteError, formats, passes, route


@dataclass(frozen=True)
class Check:
    """How a step's output is judged against the source model.

    bounds: the stated bounds, those of lossy steps before it included; empty when they derive from `precision` and the
        source's measured noise floor. stated_by: the step that stated each inherited bound.
    precision: the coarsest floating-point type on the way here.
    lossy: some step on the way here is lossy, so edge values are judged on finiteness and shape alone.
    waived: the written reason why this check is skipped.
    """

    bounds: tuple[Bound, ...]
    precision: str
    lossy: bool
    stated_by: tuple[str, ...]
    waived: str | None = None


@dataclass(frozen=True)
class Step:
    """One pass to run. `parent` is the id of the step (or "source") whose output it takes.

    implied: the plan put it there on the way to a `to:` target; the recipe does not name it.
    """

    id: str
    use: Pass
    options: Options
    parent: str
    check: Check
    data: str | None = None
    timeout_seconds: float = 1800.0
    python: str | None = None
    on_target: bool = False
    implied: bool = False
    where: Location | None = None

    def options_json(self) -> dict[str, Any]:
        """The options as JSON data, defaults included: part of the cache key."""
        return self.options.model_dump(mode="json", by_alias=True)


@dataclass(frozen=True)
class Plan:
    """Steps in an order in which each comes after its parent; a step without a check cannot be built."""

    recipe: Recipe
    steps: tuple[Step, ...]
    deliver: tuple[str, ...]

    def step(self, step_id: str) -> Step:
        """The step of that id. Raises KeyError."""
        return {s.id: s for s in self.steps}[step_id]

    def children(self, step_id: str) -> tuple[Step, ...]:
        """The steps that take this one's output."""
        return tuple(s for s in self.steps if s.parent == step_id)

    def ancestors(self, step_id: str) -> tuple[str, ...]:
        """Ids from the source (excluded) down to and with `step_id`."""
        chain: list[str] = []
        while step_id != SOURCE:
            chain.append(step_id)
            step_id = self.step(step_id).parent
        return tuple(reversed(chain))

    def only(self, step_ids: Sequence[str]) -> Plan:
        """The plan cut to these steps and what they need. Raises UserError for an unknown id."""
        known = [s.id for s in self.steps]
        for step_id in step_ids:
            if step_id not in known:
                raise UserError(f"--only: there is no step {step_id!r}", hint=did_you_mean(step_id, known))
        wanted = {a for step_id in step_ids for a in self.ancestors(step_id)}
        return replace(self, steps=tuple(s for s in self.steps if s.id in wanted), deliver=tuple(step_ids))


def make_plan(recipe: Recipe) -> Plan:
    """The plan of a recipe. Raises RecipeError with every mistake found, each with its place and a remedy."""
    return _Planner(recipe, []).plan()


@dataclass
class _Planner:
    recipe: Recipe
    problems: list[Problem]

    def problem(self, key: Iterable[str | int], what: str, hint: str = "") -> None:
        self.problems.append(Problem(what, self.recipe.place(*key), hint))

    def plan(self) -> Plan:
        self.check_model()
        self.check_dims()
        self.check_data()
        steps: dict[str, Step] = {}
        for index, spec in self.in_order():
            for step in self.build(index, spec, steps):
                steps[step.id] = step
        deliver = self.check_deliver(steps)
        if self.problems:
            raise RecipeError(self.problems)
        return Plan(self.recipe, tuple(steps.values()), deliver)

    # --- the parts around the steps

    def file(self, text: str, *key: str | int, what: str, folder: bool = False) -> None:
        """Note a problem unless the recipe's path leads to a file (or folder)."""
        try:
            path = self.recipe.path(text)
        except UserError as error:
            self.problem(key, error.what, error.hint)
            return
        if (path.is_dir() if folder else path.is_file()):
            return
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, near, listing=False) or "paths start from the recipe's folder"
        kind = "folder" if folder else "file"
        self.problem(key, f"{what}: there is no {kind} {path}", hint)

    def check_model(self) -> None:
        model = self.recipe.model
        if isinstance(model, TorchSource):
            file, _, name = model.torch.rpartition(":")
            if not file or not name.isidentifier():
                self.problem(("model", "torch"), f"model.torch: {model.torch!r} is not FILE.py:NAME or MODULE:NAME",
                             "for example models/net.py:build")
            elif file.endswith(".py"):
                self.file(file, "model", "torch", what="model.torch")
            if model.weights is not None:
                self.file(model.weights, "model", "weights", what="model.weights")
                if not model.weights.endswith((".safetensors", ".pt", ".pth", ".bin")):
                    self.problem(("model", "weights"), f"model.weights: {Path(model.weights).name} is of no known kind",
                                 "use .safetensors, .pt or .pth")
            for index, text in enumerate(model.files):
                self.file(text, "model", "files", index, what="model.files")
            if not self.recipe.inputs:
                self.problem(("model",), "a torch model does not say what goes into it",
                             "add `inputs:`, for example inputs: {image: {shape: [batch, 3, 224, 224]}}")
        else:
            key, text = next((k, v) for k, v in model.model_dump(by_alias=True).items() if k in
                             ("pt2", "torchscript", "pickle", "huggingface", "onnx", "openvino"))
            self.file(text, "model", key, what=f"model.{key}", folder=key == "huggingface")
            if key == "pickle" and not getattr(model, "trust_pickle", False):
                self.problem(("model", "pickle"), "a pickled module runs code from its file when it is loaded",
                             "add `trust_pickle: true` if you trust it, or save a state dict and name its factory")
            if key not in ("onnx", "openvino", "pt2") and not self.recipe.inputs:
                self.problem(("model",), f"a {key} source does not say what goes into it", "add `inputs:`")

    def check_dims(self) -> None:
        used = {d for t in self.recipe.inputs for d in t.dynamic}
        for tensor in self.recipe.inputs:
            for dim in tensor.dynamic:
                if dim not in self.recipe.dims:
                    self.problem(("inputs", tensor.name), f"input {tensor.name}: the dim {dim!r} has no range",
                                 did_you_mean(dim, self.recipe.dims, listing=False)
                                 or f"add dims: {{{dim}: {{min: 1, opt: 8, max: 64}}}}")
        if self.recipe.inputs:
            for dim in self.recipe.dims:
                if dim not in used:
                    self.problem(("dims", dim), f"no input has a dim {dim!r}", did_you_mean(dim, used))

    def check_data(self) -> None:
        for name, spec in self.recipe.data.items():
            try:
                missing = [p for p in data_files(spec, self.recipe.base) if not p.exists()]
            except UserError as error:
                self.problem(("data", name), f"data.{name}: {error.what}", error.hint)
                continue
            for path in missing:
                near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
                self.problem(("data", name), f"data.{name}: there is no {path}",
                             did_you_mean(path.name, near, listing=False) or "paths start from the recipe's folder")
        check_on = self.recipe.check_on
        if not self.recipe.data:
            self.problem((), "the recipe has no data, so nothing could be checked",
                         "add data: {judge: {npz: FILE}} and check_on: judge")
        elif not check_on:
            self.problem(("data",), "the recipe does not say which data its checks run on",
                         f"add `check_on: {list(self.recipe.data)[-1]}`")
        elif check_on not in self.recipe.data:
            self.problem(("check_on",), f"check_on: there is no dataset {check_on!r}",
                         did_you_mean(check_on, self.recipe.data))

    def check_deliver(self, steps: Mapping[str, Step]) -> tuple[str, ...]:
        named = [s.id for s in self.recipe.steps]
        for index, step_id in enumerate(self.recipe.deliver):
            if step_id not in named:
                self.problem(("deliver", index), f"deliver: there is no step {step_id!r}", did_you_mean(step_id, named))
        if self.recipe.deliver:
            return self.recipe.deliver
        parents = {s.parent for s in steps.values()}
        return tuple(s for s in steps if s not in parents)

    # --- the steps

    def in_order(self) -> Iterator[tuple[int, StepSpec]]:
        """Steps after their parents, as written where that is free; cycles and bad references are noted, then left out."""
        specs: dict[str, tuple[int, StepSpec]] = {}
        for index, spec in enumerate(self.recipe.steps):
            where = self.recipe.place_of(f"steps.{spec.id}.id")
            if spec.id == SOURCE:
                self.problem(("steps", index, "id"), f"{SOURCE!r} is the source model's own id", "call the step otherwise")
            elif spec.id in specs:
                first = self.recipe.place("steps", specs[spec.id][0], "id") or where
                self.problem(("steps", index, "id"), f"two steps are called {spec.id!r}", f"the first is at {first}")
            else:
                specs[spec.id] = (index, spec)
        done = {SOURCE}
        waiting = dict(specs)
        for step_id, (index, spec) in specs.items():
            if spec.from_ not in specs and spec.from_ != SOURCE:
                self.problem(("steps", index, "from"), f"step {step_id}: there is no step {spec.from_!r}",
                             did_you_mean(spec.from_, [*(s for s in specs if s != step_id), SOURCE]))
                waiting.pop(step_id)
        while waiting:
            ready = [s for s, (_, spec) in waiting.items() if spec.from_ in done]
            for step_id in ready[:1]:
                done.add(step_id)
                yield waiting.pop(step_id)
            if not ready:
                break
        for step_id in list(waiting):  # what hangs on a lost step is no mistake of its own
            trail, at = [step_id], waiting[step_id][1].from_
            while at in waiting and at not in trail:
                trail.append(at)
                at = waiting[at][1].from_
            if at == step_id and step_id == min(trail):
                index = waiting[step_id][0]
                self.problem(("steps", index, "from"), "these steps wait for one another: " +
                             " -> ".join([*reversed(trail), trail[-1]]), f"one of them must come from {SOURCE!r}")

    def build(self, index: int, spec: StepSpec, steps: Mapping[str, Step]) -> list[Step]:
        """The step, after the implied ones on its way."""
        parent = steps.get(spec.from_)
        if parent is None and spec.from_ != SOURCE:
            return []  # its parent has a problem of its own
        start = parent.use.target if parent else self.recipe.source_format
        chain = self.chain(index, spec, start)
        options = self.options(index, spec, chain[-1]) if chain else None
        if not chain or options is None:
            return []
        self.check_python(index, spec)
        made: list[Step] = []
        at, last_check = spec.from_, parent.check if parent else None
        for position, use in enumerate(chain):
            final = position == len(chain) - 1
            twin = next((s for s in steps.values() if not final and s.implied and s.parent == at
                         and s.use is use and s.python == spec.python), None)
            if twin:
                at, last_check = twin.id, twin.check
                continue
            check = self.check_of(index, spec, use, last_check, final)
            step = Step(
                id=spec.id if final else f"{spec.id}.{use.target}", use=use,
                options=options if final else use.options(), parent=at, check=check,
                data=self.data_of(index, spec, use, options) if final else None,
                timeout_seconds=spec.timeout or use.timeout_seconds, python=spec.python, on_target=spec.on_target,
                implied=not final, where=self.recipe.place("steps", index),
            )  # fmt: skip
            made.append(step)
            at, last_check = step.id, check
        return made

    def chain(self, index: int, spec: StepSpec, start: str) -> tuple[Pass, ...]:
        if spec.use is not None:
            use = passes().get(spec.use)
            if use is None:
                self.problem(("steps", index, "use"), f"step {spec.id}: there is no pass {spec.use!r}",
                             did_you_mean(spec.use, passes()))
                return ()
            if use.source != start:
                self.problem(("steps", index, "from" if "from" in self.raw(index) else "use"),
                             f"step {spec.id}: {use.name} takes {use.source}, but {spec.from_!r} gives {start}",
                             f"take it from a step that gives {use.source}, or convert first: to: {use.source}")
                return ()
            return (use,)
        target = spec.to or ""
        if target not in formats():
            self.problem(("steps", index, "to"), f"step {spec.id}: there is no format {target!r}",
                         did_you_mean(target, formats()))
            return ()
        if target == start:
            self.problem(("steps", index, "to"), f"step {spec.id}: {spec.from_!r} is {start} already",
                         "name the pass you want with `use:`")
            return ()
        try:
            return route(start, target)
        except NoRouteError as error:
            self.problem(("steps", index, "to"), f"step {spec.id}: {error.what}", error.hint)
            return ()

    def raw(self, index: int) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.recipe.document.data["steps"][index]
        return found

    def options(self, index: int, spec: StepSpec, use: Pass) -> Options | None:
        try:
            return use.options.model_validate(spec.with_)
        except ValidationError as error:
            for problem in explain(error, ("steps", index, "with"), self.recipe.document, use.options):
                what = problem.what.replace(f"steps.{index}.with", f"{spec.id}.with")
                self.problems.append(replace(problem, what=f"step {spec.id} ({use.name}): {what}",
                                             hint=problem.hint or f"optkit passes {use.name} lists its options"))
            return None

    def check_python(self, index: int, spec: StepSpec) -> None:
        if spec.python is not None:
            self.file(spec.python, "steps", index, "python", what=f"step {spec.id}: python")

    def data_of(self, index: int, spec: StepSpec, use: Pass, options: Options) -> str | None:
        name, key = spec.data, ("steps", index, "data")
        if name is None:
            if use.wants_data(options):
                self.problem(("steps", index), f"step {spec.id}: {use.name} needs data to fit on",
                             f"add `data: NAME`; datasets: {', '.join(self.recipe.data) or 'none yet, add data:'}")
            return None
        if name not in self.recipe.data:
            self.problem(key, f"step {spec.id}: there is no dataset {name!r}", did_you_mean(name, self.recipe.data))
        elif use.needs_data is False:
            self.problem(key, f"step {spec.id}: {use.name} takes no data", "remove `data:`")
        elif name == self.recipe.check_on:
            self.problem(key, f"step {spec.id} would be fitted on {name!r}, the data it is judged on",
                         "give it a dataset of its own; check_on: must name other samples")
        return name

    def check_of(self, index: int, spec: StepSpec, use: Pass, before: Check | None, final: bool) -> Check:
        stated: list[Bound] = []
        for position, text in enumerate(spec.check if final else ()):
            try:
                stated.append(parse_bound(text))
            except BoundError as error:
                self.problem(("steps", index, "check", position), f"step {spec.id}: {error}", error.hint)
        if use.fidelity == "lossy" and not spec.check and spec.waive is None:
            self.problem(("steps", index), f"step {spec.id}: {use.name} loses accuracy, so it must state its bounds",
                         'add check: ["cosine >= 0.99"], or waive: with the reason')
        labelled = getattr(self.recipe.data.get(self.recipe.check_on), "label", None)
        for position, bound in enumerate(stated):
            if bound.metric.startswith("accuracy") and not labelled:
                self.problem(("steps", index, "check", position),
                             f"step {spec.id}: {bound.metric} needs labels, and check_on has none",
                             f"add `label: NAME` to data.{self.recipe.check_on}")
        mine = {(b.metric, b.output) for b in stated}
        inherited = list(zip(before.bounds, before.stated_by, strict=True)) if before else []
        kept = [(bound, who) for bound, who in inherited if (bound.metric, bound.output) not in mine]
        return Check(
            bounds=(*stated, *(bound for bound, _ in kept)),
            stated_by=(*(spec.id for _ in stated), *(who for _, who in kept)),
            precision=_coarser(before.precision if before else "float32", use.precision),
            lossy=use.fidelity == "lossy" or bool(before and before.lossy),
            waived=spec.waive if final else None,
        )


_COARSENESS = ("float64", "float32", "float16", "bfloat16")


def _coarser(one: str, other: str | None) -> str:
    return max(one, other or one, key=lambda p: _COARSENESS.index(p) if p in _COARSENESS else 1)
