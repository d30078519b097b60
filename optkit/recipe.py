"""What the user wrote, typed, with line numbers. Reading a recipe opens no model and imports no backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from optkit.artifact import DTYPES, Dim, TensorSpec
from optkit.dataspec import DataSpec, parse_data, resolve_path
from optkit.errors import Location, Problem, RecipeError, UserError, did_you_mean
from optkit.yamlread import Document, Key, parse_yaml, read_yaml, set_value

SOURCE = "source"
"""The id by which steps name the source model."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=())


class TorchSource(_Section):
    """A callable that returns an nn.Module, and its weights."""

    torch: str = Field(description="FILE.py:NAME or package.module:NAME of a callable that returns an nn.Module")
    weights: str | None = Field(None, description=".safetensors, .pt or .pth with the state dict")
    kwargs: dict[str, Any] = Field({}, description="keyword arguments for the callable")
    trust_pickle: bool = Field(False, description="allow weights that need a full, code-running unpickling")
    files: list[str] = Field([], description="further files the callable reads; they count towards the cache key")


class ExportedSource(_Section):
    """A torch.export program."""

    pt2: str = Field(description="a .pt2 file from torch.export.save")


class TorchScriptSource(_Section):
    """A TorchScript module."""

    torchscript: str = Field(description="a .pt file from torch.jit.save")


class PickleSource(_Section):
    """A whole pickled nn.Module; unpickling it runs its code."""

    pickle: str = Field(description="a .pt or .pth file from torch.save(module)")
    trust_pickle: bool = Field(False, description="must be true: unpickling runs code from the file")


class HuggingFaceSource(_Section):
    """A local Hugging Face model folder."""

    huggingface: str = Field(description="a folder with config.json and weights")
    class_: str | None = Field(None, alias="class", description="transformers Auto class; default: the config's own")
    pooling: Literal["mean", "cls"] | None = Field(None, description="pool the last hidden state into an embedding")
    normalize: bool = Field(False, description="divide the embedding by its L2 norm")


class OnnxSource(_Section):
    """An ONNX file, with its external data beside it."""

    onnx: str = Field(description="a .onnx file")


class OpenVINOSource(_Section):
    """An OpenVINO IR."""

    openvino: str = Field(description="a .xml file; its .bin lies beside it")


ModelSource = (
    TorchSource | ExportedSource | TorchScriptSource | PickleSource | HuggingFaceSource | OnnxSource | OpenVINOSource
)

MODEL_KINDS: dict[str, type[_Section]] = {
    "torch": TorchSource, "pt2": ExportedSource, "torchscript": TorchScriptSource, "pickle": PickleSource,
    "huggingface": HuggingFaceSource, "onnx": OnnxSource, "openvino": OpenVINOSource,
}  # fmt: skip


class InputSpec(_Section):
    """One input of the source model."""

    shape: list[int | str] = Field(description="per axis a size or the name of a dynamic dim, batch axis included")
    dtype: str = Field("float32", description="element type, as numpy names it")
    layout: str | None = Field(None, description="axis letters, such as NCHW")
    range: tuple[float, float] | None = Field(None, description="smallest and largest value the input may take")

    @field_validator("dtype")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in DTYPES:
            raise ValueError(f"unknown dtype {value!r}; {did_you_mean(value, DTYPES)}")
        return value

    @model_validator(mode="after")
    def _fits(self) -> InputSpec:
        if any(isinstance(d, int) and d < 1 for d in self.shape):
            raise ValueError("a size must be at least 1; name a dynamic dim with a word")
        if self.layout is not None and len(self.layout) != len(self.shape):
            raise ValueError(f"layout {self.layout} has {len(self.layout)} letters for {len(self.shape)} axes")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("range must be [smallest, largest]")
        return self


class DimSpec(_Section):
    """The sizes of one dynamic dim."""

    min: int = Field(1, ge=1, description="smallest size")
    opt: int | None = Field(None, ge=1, description="size to tune for; default: min, or 2 where min is 1")
    max: int = Field(ge=1, description="largest size")

    @model_validator(mode="after")
    def _ordered(self) -> DimSpec:
        if not self.min <= self.dim.opt <= self.max:
            raise ValueError(f"needs min <= opt <= max, got {self.min}, {self.dim.opt}, {self.max}")
        return self

    @property
    def dim(self) -> Dim:
        return Dim(self.min, self.opt if self.opt is not None else min(max(self.min, 2), self.max), self.max)


class StepSpec(_Section):
    """One step as written: a conversion by its target, or a pass by its name."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", description="the step's name; letters, digits, . _ -")
    from_: str = Field(SOURCE, alias="from", description="the step whose output it takes; default: the source model")
    to: str | None = Field(None, description="target format: the shortest faithful way there is taken")
    use: str | None = Field(None, description="a pass by name; see `optkit passes`")
    with_: dict[str, Any] = Field({}, alias="with", description="the pass's options; see `optkit passes NAME`")
    data: str | None = Field(None, description="the dataset to fit on (calibration)")
    check: list[str] = Field([], description='bounds, such as "cosine >= 0.99" or "logits.top1_agreement >= 99%"')
    waive: str | None = Field(None, description="the reason why this step's check may be skipped")
    on_target: bool = Field(False, description="a check this machine cannot run is meant to run on the target")
    timeout: float | None = Field(None, gt=0, description="seconds after which the step is stopped")
    python: str | None = Field(None, description="interpreter of another environment to run this step in")

    @model_validator(mode="after")
    def _one_way(self) -> StepSpec:
        if (self.to is None) == (self.use is None):
            raise ValueError("needs either `to: FORMAT` or `use: PASS`" + (", not both" if self.to else ""))
        if self.waive is not None and len(self.waive.strip()) < 8:
            raise ValueError("waive: needs a written reason, a sentence that the report can show")
        if self.waive is not None and self.check:
            raise ValueError("has both check: and waive:; keep one")
        return self


_TOP = ("version", "name", "model", "inputs", "outputs", "dims", "data", "check_on", "steps", "deliver", "seed",
        "device", "threads")  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A recipe, typed.

    inputs: in the order written; empty when the model's file knows its own.
    outputs: names for the model's outputs, in its order; empty to use the model's own.
    dims: the range of each named dim. check_on: the dataset every check runs on.
    base: the folder its relative paths start from.
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
    document: Document = field(default_factory=lambda: Document({}, None), compare=False, repr=False)

    def place(self, *key: str | int) -> Location | None:
        """Where a key stands in the file."""
        return self.document.place(key)

    def place_of(self, subject: str) -> Location | None:
        """Where an error's dotted subject ("data.fit", "steps.int8.with.method") stands; steps go by id."""
        key: list[str | int] = []
        words = subject.split(".")
        if words[0] == "steps":
            ids = {step.id: n for n, step in enumerate(self.steps)}
            rest = subject[len("steps."):]
            found = max((i for i in ids if rest == i or rest.startswith(i + ".")), key=len, default=None)
            if found is None:
                return self.document.place(("steps",))
            key = ["steps", ids[found], *[w for w in rest[len(found):].split(".") if w]]
        else:
            key = list(words)
        return self.document.place(key)

    def path(self, text: str) -> Path:
        """A path of the recipe made absolute. Raises UserError for a `package:` that is not installed."""
        return resolve_path(text, self.base)

    @cached_property
    def source_format(self) -> str:
        """The format steps from the source start at."""
        if isinstance(self.model, OnnxSource):
            return "onnx"
        if isinstance(self.model, OpenVINOSource):
            return "openvino"
        return "torch"


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `key.path=value` overrides applied.

    Raises RecipeError with every mistake found, each with file, line and a remedy.
    """
    document = read_yaml(Path(path))
    for assignment in overrides:
        set_value(document, assignment)
    return recipe_of(document, Path(path).parent)


def recipe_from(data: Mapping[str, Any], base: str | Path = ".") -> Recipe:
    """A recipe from plain data, as the Python API builds it; relative paths start from `base`."""
    return recipe_of(Document(dict(data), None), Path(base))


def recipe_from_text(text: str, base: str | Path = ".") -> Recipe:
    """A recipe from YAML text; relative paths start from `base`."""
    return recipe_of(parse_yaml(text, None), Path(base))


def recipe_of(document: Document, base: Path) -> Recipe:
    """The typed recipe of a document. Raises RecipeError with every mistake found."""
    data = document.data
    problems: list[Problem] = []
    if not isinstance(data, dict):
        raise RecipeError([Problem(f"a recipe is a mapping, this is a {type(data).__name__}", document.place(()),
                                   "start with `version: 1`")])
    reader = _Reader(document, problems)
    for key in data:
        if key not in _TOP:
            reader.problem((key,), f"unknown key {key!r}", did_you_mean(key, _TOP))
    if data.get("version") != 1:
        reader.problem(("version",), "the recipe needs `version: 1`" if "version" not in data else
                       f"recipe version {data['version']!r} is not known", "this optkit reads version 1")

    name = reader.scalar("name", str, default=None)
    if name is None:
        name = document.file.stem if document.file else "model"
    elif not name or not all(c.isalnum() or c in "._-" for c in name):
        reader.problem(("name",), f"the name {name!r} becomes a folder's name",
                       "use letters, digits, dot, dash and underscore")
    model = reader.model()
    inputs = [TensorSpec(key, spec.dtype, tuple(spec.shape), spec.layout, spec.range)
              for key, spec in reader.table("inputs", InputSpec).items()]
    dims = {key: spec.dim for key, spec in reader.table("dims", DimSpec).items()}
    datasets = reader.mapping("data", lambda value, key: reader.dataset(value, key))
    steps = reader.steps()
    deliver = reader.names("deliver")
    check_on = reader.scalar("check_on", str, default="")
    if problems or model is None:
        raise RecipeError(problems)
    return Recipe(
        name=name, model=model, inputs=tuple(inputs), outputs=tuple(reader.names("outputs")), dims=dims, data=datasets,
        check_on=check_on, steps=tuple(steps), deliver=tuple(deliver), base=base.absolute(),
        seed=reader.scalar("seed", int, default=0), device=reader.scalar("device", str, default="cpu"),
        threads=reader.scalar("threads", int, default=None), document=document,
    )  # fmt: skip


@dataclass
class _Reader:
    """Reads one section after the other, noting every mistake instead of stopping at the first."""

    document: Document
    problems: list[Problem]

    def problem(self, key: Key, what: str, hint: str = "") -> None:
        self.problems.append(Problem(what, self.document.place(key), hint))

    def scalar(self, key: str, kind: type[Any], default: Any) -> Any:
        value = self.document.data.get(key, default)
        if value is not default and (not isinstance(value, kind) or isinstance(value, bool)):
            self.problem((key,), f"{key}: needs a {'number' if kind is int else 'word'}, got {value!r}")
            return default
        if kind is int and value is not None and value < (1 if key == "threads" else 0):
            self.problem((key,), f"{key}: {value} is too small")
        return value

    def names(self, key: str) -> list[str]:
        value = self.document.data.get(key, [])
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            self.problem((key,), f"{key}: needs a list of names, got {value!r}", f"{key}: [first, second]")
            return []
        for index, item in enumerate(value):
            if item in value[:index]:
                self.problem((key, index), f"{key}: {item!r} is listed twice")
        return value

    def mapping(self, key: str, read: Callable[[Any, Key], Any]) -> dict[str, Any]:
        value = self.document.data.get(key, {})
        if not isinstance(value, dict):
            self.problem((key,), f"{key}: needs a mapping of names, got {value!r}")
            return {}
        made = {name: read(item, (key, name)) for name, item in value.items()}
        return {name: item for name, item in made.items() if item is not None}

    def table(self, key: str, section: type[Any]) -> dict[str, Any]:
        return self.mapping(key, lambda value, where: self.section(section, value, where))

    def section(self, section: type[_Section], value: Any, key: Key) -> Any:
        if not isinstance(value, dict):
            self.problem(key, f"{key[-1]}: needs keys, got {value!r}",
                         f"its keys are: {', '.join(_aliases(section))}")
            return None
        try:
            return section.model_validate(value)
        except ValidationError as error:
            self.problems.extend(explain(error, key, self.document, section))
            return None

    def model(self) -> ModelSource | None:
        value = self.document.data.get("model")
        if value is None:
            self.problem((), "the recipe names no model", "add `model: {torch: FILE.py:build}` or `model: {onnx: FILE}`")
            return None
        if not isinstance(value, dict):
            self.problem(("model",), f"model: needs keys, got {value!r}", f"one of: {', '.join(MODEL_KINDS)}")
            return None
        kinds = [kind for kind in MODEL_KINDS if kind in value]
        if len(kinds) != 1:
            what = "names no kind of source" if not kinds else f"names {len(kinds)} kinds of source: {', '.join(kinds)}"
            unknown = next((k for k in value if k not in MODEL_KINDS), None)
            hint = did_you_mean(unknown, MODEL_KINDS) if unknown and not kinds else f"one of: {', '.join(MODEL_KINDS)}"
            self.problem(("model",), f"model: {what}", hint)
            return None
        made: ModelSource | None = self.section(MODEL_KINDS[kinds[0]], value, ("model",))
        return made

    def dataset(self, value: Any, key: Key) -> DataSpec | None:
        if not isinstance(value, dict):
            self.problem(key, f"{key[-1]}: needs keys, got {value!r}", "for example {npz: FILE}")
            return None
        try:
            return parse_data(value)
        except ValidationError as error:
            self.problems.extend(explain(error, key, self.document, None))
        except (UserError, ValueError) as error:
            self.problem(key, f"data.{key[-1]}: {getattr(error, 'what', error)}", getattr(error, "hint", ""))
        return None

    def steps(self) -> list[StepSpec]:
        value = self.document.data.get("steps")
        if not isinstance(value, list) or not value:
            self.problem(("steps",), "the recipe has no steps" if not value else f"steps: needs a list, got {value!r}",
                         "steps:\n    - {id: onnx, to: onnx}")
            return []
        made = [self.section(StepSpec, item, ("steps", n)) for n, item in enumerate(value)]
        return [step for step in made if step is not None]


def _aliases(section: type[BaseModel]) -> list[str]:
    return [info.alias or name for name, info in section.model_fields.items()]


def explain(error: ValidationError, key: Key, document: Document, section: type[BaseModel] | None) -> list[Problem]:
    """A pydantic error as problems in optkit's words, each at its place in the document."""
    problems = []
    for item in error.errors(include_url=False):
        inner = tuple(part for part in item["loc"] if not (isinstance(part, str) and part[:1] in "[<"))
        where = document.place((*key, *inner))
        shown = ".".join(str(part) for part in (*key, *inner))
        hint = ""
        if item["type"] == "extra_forbidden":
            words = _aliases(section) if section and len(inner) == 1 else []
            what = f"unknown key {inner[-1]!r} in {'.'.join(str(p) for p in (*key, *inner[:-1]))}"
            hint = did_you_mean(str(inner[-1]), words) if words else ""
        elif item["type"] == "missing":
            what = f"{'.'.join(str(p) for p in (*key, *inner[:-1]))} lacks the key {inner[-1]!r}"
        elif item["type"] in ("value_error", "assertion_error"):
            what, _, hint = f"{shown}: {item['ctx']['error']}".partition("; ")
        elif item["type"] == "literal_error":
            what = f"{shown}: {item['input']!r} is not one of {item['ctx']['expected']}"
            expected = [w.strip(" '") for w in item["ctx"]["expected"].replace(" or ", ",").split(",")]
            hint = did_you_mean(str(item["input"]), expected, listing=False)
        elif item["type"] == "string_pattern_mismatch":
            what = f"{shown}: {item['input']!r} may hold only letters, digits, dot, dash and underscore"
        else:
            what = f"{shown}: {item['msg'][0].lower()}{item['msg'][1:]}, got {item['input']!r}"
        problems.append(Problem(what, where, hint))
    return problems
