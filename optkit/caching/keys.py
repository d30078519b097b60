"""What decides a result: tool versions, datasets, and the cache keys made of them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache as memoise
from pathlib import Path
from typing import Any

import optkit
from optkit.artifact import Artifact, digest_file, digest_of
from optkit.cache import Cache
from optkit.envs import environments
from optkit.errors import UnavailableError, UserError
from optkit.parity.bounds import parse_bound
from optkit.parity.cases import Case
from optkit.planning import Plan, Step
from optkit.plans.named import named_digest, named_files
from optkit.plugin import EXTRAS, install_line
from optkit.recipe import HuggingFaceSource, Recipe, TorchSource
from optkit.registry import conversion, get_runner
from optkit.spec.dataspec import ImageData, content_key, image_classes, image_files, resolve_path, tools
from optkit.spec.dataspec import files as data_files
from optkit.spec.metricspec import Metric, bound_table

_INSTEAD = {"tensorflow-cpu": "tensorflow"}
"""What brings the same modules as a distribution, and more."""


@memoise
def version_of(tool: str) -> str | None:
    """The installed version of a distribution in this environment, or of what brings the same modules; or None."""
    try:
        return importlib.metadata.version(tool)
    except importlib.metadata.PackageNotFoundError:
        return version_of(_INSTEAD[tool]) if tool in _INSTEAD else None


@memoise
def _versions_in(python: str, tools: tuple[str, ...]) -> tuple[str | None, ...]:
    code = (
        "import importlib.metadata as m, json, sys\n"
        "def v(n):\n try: return m.version(n)\n except m.PackageNotFoundError: return None\n"
        "print(json.dumps([v(n) for n in sys.argv[1:]]))"
    )
    try:
        done = subprocess.run([python, "-c", code, *tools], capture_output=True, text=True, timeout=60, check=True)
        return tuple(json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise UnavailableError(
            f"the interpreter {python} cannot be used: {error}", hint=environments.remedy_for(python)
        ) from error


def versions(tools: Iterable[str], python: str | None = None) -> dict[str, str | None]:
    """Versions by distribution, in this environment or another interpreter's."""
    names = tuple(dict.fromkeys(tools))
    if python is None or python == sys.executable:
        return {name: version_of(name) for name in names}
    if environment := environments.of(python):
        return environments.versions(environment, names)
    return dict(zip(names, _versions_in(python, names), strict=True))


def source_tools(recipe: Recipe) -> tuple[str, ...]:
    """The distributions that load and run the source model."""
    extra: tuple[str, ...] = ()
    if isinstance(recipe.model, HuggingFaceSource):
        extra = ("transformers", "safetensors")
    elif isinstance(recipe.model, TorchSource) and (recipe.model.weights or "").endswith(".safetensors"):
        extra = ("safetensors",)
    return (*get_runner(recipe.source_format).tools, *extra)


def require_tools(plan: Plan) -> None:
    """Raise UnavailableError, naming every distribution and environment that the plan needs and that is not here."""
    needed: dict[str, str] = dict.fromkeys(source_tools(plan.recipe), "the source model")
    for name, spec in plan.recipe.data.items():
        needed |= dict.fromkeys(tools(spec), f"the dataset {name}")
    for step in plan.steps:
        if step.environment is None:
            for tool, version in versions(step.use.tools, step.python).items():
                if version is None:
                    needed.setdefault(tool, f"step {step.id}")
        for tool in get_runner(step.use.target).tools:
            needed.setdefault(tool, f"the check of step {step.id}")
        for tool in tried_tools(step):
            needed.setdefault(tool, f"the candidates of step {step.id}")
    missing = [tool for tool in needed if version_of(tool) is None]
    if missing:
        what = ", ".join(f"{tool} (for {needed[tool]})" for tool in missing)
        remedies = [install_lines(missing), *(environments.find(name).remedy for name in unusable(plan))]
        raise UnavailableError(f"not installed: {what}", hint=" && ".join(remedies), code="OPK-401")
    require_environments(plan)


def unusable(plan: Plan) -> dict[str, list[str]]:
    """Environments that the plan needs and that cannot be used, each with the steps that need it."""
    users: dict[str, list[str]] = {}
    for step in plan.steps:
        if step.environment is not None:
            users.setdefault(step.environment, []).append(step.id)
    return {name: steps for name, steps in users.items() if environments.find(name).problem}


def require_environments(plan: Plan) -> None:
    """Raise UnavailableError, with the command that makes it, where an environment the plan needs is not usable."""
    wanting = unusable(plan)
    if wanting:
        whats = [f"the environment {name} {environments.find(name).problem}, and {', '.join(steps)} "
                 f"need{'s' if len(steps) == 1 else ''} it" for name, steps in wanting.items()]  # fmt: skip
        raise UnavailableError(
            "; ".join(whats), hint=" && ".join(environments.find(name).remedy for name in wanting), code="OPK-403"
        )


def install_lines(missing: Iterable[str]) -> str:
    """One command that installs all of optkit's extras that bring these distributions, and one for each of the rest."""
    extras = sorted({EXTRAS[tool] for tool in missing if tool in EXTRAS})
    lines = [f'pip install "optkit[{",".join(extras)}]"'] if extras else []
    return " && ".join([*lines, *(install_line(tool) for tool in missing if tool not in EXTRAS)])


def data_key(recipe: Recipe, name: str, cache: Cache, *, known_only: bool = False) -> str | None:
    """The digest of all that decides a dataset's samples; reads no sample. None as in `Cache.digest`."""
    spec = recipe.data[name]
    digests = [cache.digest(path, known_only=known_only) for path in data_files(spec, recipe.base, name)]
    if None in digests:
        return None
    key: list[Any] = [
        content_key(spec),
        digests,
        [t.to_json() for t in recipe.inputs],
        dims_json(recipe.dims),
        versions(tools(spec)),
    ]
    if isinstance(spec, ImageData) and spec.label:
        folder = resolve_path(spec.images, recipe.base)
        key += [image_classes(folder), [p.relative_to(folder).as_posix() for p in image_files(spec, recipe.base, name)]]
    return digest_of(key)


def dims_json(dims: Mapping[str, Any]) -> dict[str, Any]:
    """Dim ranges as JSON data."""
    return {name: dim.to_json() for name, dim in dims.items()}


def describe_key(recipe: Recipe, artifact: Artifact) -> str:
    """The key of the source model's signature."""
    return digest_of(
        [
            "source",
            optkit.__version__,
            artifact.format,
            artifact.digest,
            [t.to_json() for t in recipe.inputs],
            list(recipe.outputs),
            dims_json(recipe.dims),
            versions(source_tools(recipe)),
        ]
    )


def datasets_key(plan: Plan, keys: Mapping[str, str], artifact: Artifact) -> str:
    """The key of the datasets' counts and their test for overlap."""
    signature = artifact.signature
    return digest_of(
        [
            "data",
            optkit.__version__,
            dict(keys),
            fitted(plan),
            plan.recipe.check_on,
            [t.to_json() for t in signature.inputs] if signature else None,
        ]
    )


def fitted(plan: Plan) -> dict[str, list[str]]:
    """Fitting datasets and the steps fitted on each."""
    users: dict[str, list[str]] = {}
    for step in plan.steps:
        if step.data:
            users.setdefault(step.data, []).append(step.id)
    return users


def reads_key(plan: Plan, step: Step, cache: Cache, *, known_only: bool = False) -> str | None:
    """The digest of the files that a step's options name; None as in `Cache.digest`. Raises UserError."""
    try:
        files = named_files(step.use, step.options, plan.recipe.base)
    except UserError as error:
        raise UserError(f"step {step.id}: {error.what}", hint=error.hint) from error
    found = named_digest(files, step.use.target, cache, known_only=known_only)
    judged = {m.name: (m, m.files(plan.recipe.base)) for m in budgeted(plan, step)}
    if found is None or not judged:
        return found
    read = {name: cache.digest_all(paths, known_only=known_only) for name, (_, paths) in judged.items()}
    if None in read.values():
        return None
    return digest_of([found, [[metric.to_json(), read[name]] for name, (metric, _) in judged.items()]])


def budgeted(plan: Plan, step: Step) -> list[Metric]:
    """The task metrics that a step's budget names: they decide its output."""
    if not plan.recipe.metrics or not (texts := step.use.budget(step.options)):
        return []
    table = bound_table(plan.recipe.metrics)
    named = {parse_bound(text, table).info.task for text in texts}
    return [metric for metric in plan.recipe.metrics if metric.name in named]


def step_key(
    plan: Plan, step: Step, parent: Artifact, data: str | None, source: Artifact, reads: str | None = None
) -> str:
    """The key of a step's output.

    source: the source model, on which a pass that takes it as its teacher depends. reads: see `reads_key`.
    """
    recipe, signature = plan.recipe, parent.signature
    # Only where a pass asks for it: other keys stay as they are on every machine.
    here = [list(step.use.machine(step.options))] if step.use.machine else []
    tools = step.use.tools if parent.format != "torch" else (*step.use.tools, *source_tools(recipe))
    return digest_of(
        [
            "step",
            step.use.name,
            step.use.version,
            step.options_json(),
            parent.digest,
            [t.to_json() for t in signature.inputs] if signature else None,
            dims_json(recipe.dims),
            data,
            recipe.seed,
            versions(tools, step.python),
            *([source.digest] if step.use.wants_source(step.options) else []),
            *([reads] if step.use.reads(step.options) or budgeted(plan, step) else []),
            *here,
            *([_tried(step, tried, recipe)] if (tried := step.use.tries(step.options)) else []),
            # A torch model's output names its code by path: another checkout's cannot stand for it.
            digest_file(parent.path) if step.use.target == "torch" else None,
        ]
    )


def _tried(step: Step, target: str, recipe: Recipe) -> list[Any]:
    """What decides the speed of candidates that a step measures on a format's runtime."""
    way = [[p.name, p.version] for p in conversion(step.use.target, target)]
    return [way, get_runner(target).version, versions(tried_tools(step)), hardware(), recipe.threads]


def tried_tools(step: Step) -> tuple[str, ...]:
    """The distributions that convert and run the candidates of a step that measures some."""
    target = step.use.tries(step.options)
    if target is None:
        return ()
    return (*(tool for p in conversion(step.use.target, target) for tool in p.tools), *get_runner(target).tools)


def shared_key(plan: Plan, step: Step, data: str) -> str:
    """The key of what a step may share with others on the same data; what it makes of which model is for it to add."""
    inputs = [t.to_json() for t in plan.recipe.inputs]
    return digest_of(["shared", data, inputs, dims_json(plan.recipe.dims), versions(step.use.tools, step.python)])


def record_key(recipe: Recipe, source: Artifact, data: str, cases: Sequence[Case]) -> str:
    """The key of the source model's recorded answers."""
    return digest_of(
        [
            "record",
            optkit.__version__,
            source.digest,
            data,
            [c.to_json() for c in cases],
            get_runner(source.format).version,
            versions(source_tools(recipe)),
            recipe.device,
        ]
    )


def check_key(
    recipe: Recipe, artifact: Artifact, source: Artifact, parent: Artifact | None, data: str, cases: Sequence[Case]
) -> str:
    """The key of a check's metrics. Bounds are no part of it: changing one runs no model again."""
    runner = get_runner(artifact.format)
    return digest_of(
        [
            "check",
            optkit.__version__,
            opened_as(artifact),
            source.digest,
            opened_as(parent) if parent else None,
            data,
            [c.to_json() for c in cases],
            runner.version,
            versions([*runner.tools, *source_tools(recipe)]),
            recipe.device,
        ]
    )


def blame_key(recipe: Recipe, artifact: Artifact, chain: Sequence[Artifact], data: str, case: Mapping[str, Any],
              samples: Sequence[int]) -> str:  # fmt: skip
    """The key of a search for the layer that made a check fail."""
    tools = [tool for a in (artifact, *chain) for tool in get_runner(a.format).tools]
    told = [[case[key] for key in ("name", "kind", "sizes")], list(samples)]
    return digest_of(["blame", optkit.__version__, opened_as(artifact), [opened_as(a) for a in chain], data, told,
                      versions([*tools, *source_tools(recipe)])])  # fmt: skip


def opened_as(artifact: Artifact) -> str | list[Any]:
    """What decides the answers of an artifact: its files, and the runtime settings it is opened with."""
    runtime = artifact.meta.get("runtime")
    return [artifact.digest, runtime] if runtime else artifact.digest


def race_key(recipe: Recipe, artifacts: Sequence[Artifact], data: str, case: Case, threads: int) -> str:
    """The key of a race between artifacts: its figures hold for these files on a machine like this one."""
    used = [get_runner(a.format) for a in artifacts]
    return digest_of(
        [
            "race in several processes",
            optkit.__version__,
            [opened_as(a) for a in artifacts],
            data,
            case.to_json(),
            threads,
            recipe.device,
            [r.version for r in used],
            versions([*(t for r in used for t in r.tools), *source_tools(recipe)]),
            [platform.machine(), _cpu(), cores()],
        ]
    )


def metric_key(
    recipe: Recipe, metric: Metric, artifact: Artifact, source: Artifact, data: str, case: Case, cache: Cache
) -> str:
    """The key of what one task metric measured of an artifact. Raises DataError for a file it needs and lacks."""
    runner = get_runner(artifact.format)
    return digest_of(
        [
            "metric",
            optkit.__version__,
            metric.to_json(),
            [cache.digest(path) for path in metric.files(recipe.base)],
            opened_as(artifact),
            source.digest,
            data,
            case.to_json(),
            recipe.seed,
            runner.version,
            versions([*runner.tools, *source_tools(recipe), "numpy"]),
            recipe.device,
        ]
    )


def environment(plan: Plan) -> dict[str, Any]:
    """Versions and hardware, for the report."""
    tools = dict.fromkeys([*source_tools(plan.recipe), "numpy"])
    for step in plan.steps:
        tools |= dict.fromkeys([*step.use.tools, *get_runner(step.use.target).tools, *tried_tools(step)])
    return {
        "optkit": optkit.__version__,
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.release()}",
        **hardware(),
        "tools": {k: v for k, v in versions(tools).items() if v},
    }


def hardware() -> dict[str, Any]:
    """What times in milliseconds hold for: the kind of machine, its processor, and the cores this process may use."""
    return {"machine": platform.machine(), "cpu": _cpu(), "cores": cores()}


def cores() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()
