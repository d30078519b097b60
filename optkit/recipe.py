"""What the user wrote, typed, with line numbers. Reading a recipe opens no model and imports no backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from optkit.artifact import Dim, TensorSpec
from optkit.errors import Location, OptkitError, Problem, RecipeError, UserError
from optkit.spec.dataspec import DataSpec, resolve_path
from optkit.spec.metricread import read_metrics
from optkit.spec.metricspec import Metric
from optkit.spec.reading import Reader
from optkit.spec.sections import (
    MODEL_KINDS,
    SOURCE,
    BaselineSpec,
    BenchmarkSpec,
    DimSpec,
    ExportedSource,
    FileSource,
    HuggingFaceSource,
    InputSpec,
    KerasSource,
    ModelSource,
    OnnxSource,
    OpenVINOSource,
    PickleSource,
    SavedModelSource,
    StepSpec,
    TFGraphSource,
    TorchScriptSource,
    TorchSource,
)
from optkit.spec.yamlread import Document, Key, parse_yaml, plain_document, read_yaml, set_value

__all__ = [
    "MODEL_KINDS", "SOURCE", "BaselineSpec", "BenchmarkSpec", "DimSpec", "ExportedSource", "FileSource",
    "HuggingFaceSource", "InputSpec", "KerasSource", "ModelSource", "OnnxSource", "OpenVINOSource", "PickleSource",
    "Recipe", "SavedModelSource", "StepSpec", "TFGraphSource", "TorchScriptSource", "TorchSource",
    "load_recipe", "recipe_from", "recipe_from_text", "recipe_of",
]  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A recipe, typed.

    inputs: in the order written; empty when the model's file knows its own.
    outputs: names for the model's outputs, in its order; empty to use the model's own.
    dims: the range of each named dim. check_on: the dataset every check runs on.
    speed: whether quantised and otherwise lossy deliveries are raced against the step they come from.
    blame: whether a failed check is followed by a search for the layer that made it fail.
    gate: what every delivery may take at most, or must gain.
    baseline: what an earlier run reached, and how much worse this one may be.
    benchmark: what the deliveries are measured at once they are made.
    metrics: the task metrics that are measured on it.
    base: the folder its relative paths start from.
    faults: keys whose mistakes are told already; empty in every recipe that was loaded.
    """

    name: str
    model: ModelSource
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    dims: Mapping[str, Dim]
    data: Mapping[str, DataSpec]
    check_on: str
    steps: tuple[StepSpec, ...]
    deliver: tuple[str, ...]
    base: Path
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    speed: bool = True
    blame: bool = True
    gate: tuple[str, ...] = ()
    baseline: BaselineSpec | None = None
    benchmark: BenchmarkSpec | None = None
    metrics: tuple[Metric, ...] = ()
    document: Document = field(default_factory=lambda: Document({}, None), compare=False, repr=False)
    faults: frozenset[Key] = frozenset()

    def place(self, *key: str | int) -> Location | None:
        """Where a key stands in the file."""
        return self.document.place(key)

    def place_of(self, subject: str) -> Location | None:
        """Where an error's dotted subject ("data.fit", "steps.int8.with.method") stands; steps go by id."""
        words = subject.split(".")
        if words[0] == "metric":
            return self.document.place(next((m.at for m in self.metrics if [m.name] == words[1:]), ("metric",)))
        if words[0] != "steps":
            return self.document.place(words)
        rest = subject.removeprefix("steps").lstrip(".")
        ids = {step.id: n for n, step in enumerate(self.steps)}
        found = max((i for i in ids if rest == i or rest.startswith(f"{i}.")), key=len, default=None)
        if found is None:
            return self.document.place(("steps",))
        return self.document.place(["steps", ids[found], *rest[len(found) :].lstrip(".").split(".")])

    def path(self, text: str) -> Path:
        """A path of the recipe made absolute. Raises UserError for a `package:` or a home folder that is not there."""
        try:
            return resolve_path(text, self.base)
        except RuntimeError as error:
            raise UserError(f"{text!r}: {error}", hint="write the path in full") from error

    @cached_property
    def source_format(self) -> str:
        """The format steps from the source start at; "" for a file whose ending no runner knows."""
        if found := _FORMATS.get(type(self.model)):
            return found
        if isinstance(self.model, FileSource):
            from optkit.registry import format_of

            return self.model.format or format_of(self.model.file) or ""
        return "torch"


_FORMATS: dict[type[ModelSource], str] = {
    OnnxSource: "onnx", OpenVINOSource: "openvino", SavedModelSource: "savedmodel", KerasSource: "keras",
    TFGraphSource: "tf_graph",
}  # fmt: skip


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `key.path=value` overrides applied.

    Raises RecipeError with every mistake found, planning's included, each with file, line and a remedy.
    """
    document = read_yaml(Path(path))
    problems: list[Problem] = []
    for assignment in overrides:
        try:
            set_value(document, assignment)
            document.assigned.append(assignment)
        except RecipeError as error:
            problems += error.problems
    return recipe_of(document, Path(path).parent, problems)


def recipe_from(data: Mapping[str, Any], base: str | Path = ".") -> Recipe:
    """A recipe from plain data, as the Python API builds it; relative paths start from `base`."""
    return recipe_of(plain_document(data), Path(base))


def recipe_from_text(text: str, base: str | Path = ".") -> Recipe:
    """A recipe from YAML text; relative paths start from `base`."""
    return recipe_of(parse_yaml(text, None), Path(base))


def recipe_of(document: Document, base: Path, problems: Sequence[Problem] = ()) -> Recipe:
    """The typed recipe of a document. Raises RecipeError with every mistake found, after those in `problems`."""
    data = document.data
    if not isinstance(data, dict):
        what = f"a recipe is a mapping, this is a {type(data).__name__}"
        raise RecipeError([*problems, Problem(what, document.place(()), "start with `version: 1`")])
    reader = Reader(document, list(problems))
    reader.top()
    inputs = reader.table("inputs", InputSpec).items()
    recipe = Recipe(
        name=reader.name(),
        model=reader.model(),
        inputs=tuple(TensorSpec(key, s.dtype, tuple(s.shape), s.layout, s.range) for key, s in inputs),
        outputs=tuple(reader.names("outputs")),
        dims={key: spec.dim for key, spec in reader.table("dims", DimSpec).items()},
        data=reader.mapping("data", reader.dataset),
        check_on=reader.word("check_on", ""),
        steps=tuple(reader.steps()),
        deliver=tuple(reader.names("deliver")),
        base=base.absolute(),
        seed=reader.seed(),
        device=reader.word("device", "cpu"),
        threads=reader.number("threads", None, 1, 4096),
        speed=reader.flag("speed", True),
        blame=reader.flag("blame", True),
        gate=tuple(reader.names("gate", "gates", '["size <= 10 MB", "speedup >= 2"]')),
        baseline=reader.baseline(),
        benchmark=reader.benchmark(),
        metrics=read_metrics(reader),
        document=document,
        faults=frozenset(reader.faults),
    )
    if reader.problems:
        raise RecipeError([*reader.problems, *_planning_problems(recipe)])
    return recipe


def _planning_problems(recipe: Recipe) -> tuple[Problem, ...]:
    """What planning has to say about the part of a faulty recipe that could be read: all mistakes are told at once."""
    from optkit.planning import make_plan

    try:
        make_plan(recipe)
    except RecipeError as error:
        return error.problems
    except OptkitError:  # a broken plug-in: told once the recipe itself is in order
        pass
    return ()
