"""What a recipe may write under `metric:`: task metrics, typed, and the names their figures have in bounds.

Pure: names and options are checked without opening a model, a dataset or a callable, and without numpy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from optkit.data.imports import local_files, locate_module
from optkit.errors import DataError
from optkit.parity.bounds import METRICS, MetricInfo
from optkit.spec.dataspec import existing, is_file, resolve_path, split_callable

Better = Literal["higher", "lower"]


class MetricOptions(BaseModel):
    """What every metric takes."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=())

    output: str | None = Field(None, description="the model's output it reads; default: the only one")
    target: str | None = Field(None, description="the label it reads, where the dataset has several")
    confidence: float = Field(0.95, ge=0.5, le=0.999, description="of its confidence intervals, such as 0.95")
    resamples: int = Field(1000, ge=100, le=100_000, strict=True, description="bootstrap resamples of the samples")


class AccuracyOptions(MetricOptions):
    """Share of labels that are the class with the largest score."""

    axis: int | None = Field(None, strict=True, description="the output's axis of classes; default: where it fits")
    ignore: int | None = Field(None, strict=True, description="a label that is left out; negative ones always are")
    threshold: float | None = Field(None, description="binary: an output above it is class 1")


class TopKOptions(MetricOptions):
    """Share of labels that are among the k classes with the largest scores."""

    k: int = Field(ge=1, strict=True, description="how many classes count")
    axis: int | None = Field(None, strict=True, description="the output's axis of classes; default: where it fits")
    ignore: int | None = Field(None, strict=True, description="a label that is left out; negative ones always are")


class F1Options(AccuracyOptions):
    """F1 over classes."""

    average: Literal["macro", "micro", "weighted", "binary"] = Field(
        "macro", description="over the classes that occur, or binary: F1 of the class `positive`"
    )
    positive: int = Field(1, ge=0, strict=True, description="the positive class of average: binary")


class IouOptions(AccuracyOptions):
    """Intersection over union of segmentation maps, mean over the classes that occur."""

    class_: int | None = Field(None, alias="class", ge=0, strict=True, description="of this class alone")


class MapOptions(MetricOptions):
    """Mean average precision of boxes, as COCO defines it."""

    boxes: str | None = Field(None, description="the output with the boxes, (detections, 4) per image")
    scores: str | None = Field(None, description="the output with the scores, (detections,) or (detections, classes)")
    labels: str | None = Field(None, description="the output with the class ids, (detections,)")
    format: Literal["xyxy", "xywh", "cxcywh"] = Field("xyxy", description="what the four numbers of a box are")
    min_score: float = Field(0.0, description="detections that score no higher are padding")
    iou: tuple[float, ...] = Field(
        tuple(round(0.5 + 0.05 * n, 2) for n in range(10)), min_length=1, description="thresholds; default: COCO's ten"
    )
    max_detections: int = Field(100, ge=1, strict=True, description="best-scored detections of an image that count")
    target_boxes: str = Field("boxes", description="the label with the true boxes, (objects, 4) per image")
    target_labels: str = Field("labels", description="their class ids, (objects,); negative ones are padding")

    @model_validator(mode="after")
    def _outputs(self) -> MapOptions:
        if self.target is not None:
            raise ValueError("map reads two labels; name them with target_boxes: and target_labels:")
        if (self.boxes is None) != (self.scores is None) or (self.labels is not None and self.boxes is None):
            raise ValueError("names one of boxes and scores; name both, or an output: of x1, y1, x2, y2, score, class")
        if self.boxes is not None and self.output is not None:
            raise ValueError("has both output: and boxes:; keep one")
        if not all(0 < level <= 1 for level in self.iou):
            raise ValueError("iou thresholds lie above 0, up to 1; for example [0.5]")
        return self


class WerOptions(MetricOptions):
    """Word error rate: edits over words of the reference."""

    decode: Literal["ids", "ctc", "text"] = Field(
        "ids", description="ids: token ids, or scores of which the largest counts; ctc: the same, collapsed; text"
    )
    blank: int = Field(0, ge=0, strict=True, description="ctc: the id of the blank")
    drop: tuple[int, ...] = Field((), description="token ids that are no text, such as padding")
    vocabulary: str | None = Field(
        None, description=".json of token to id, or .txt with one token per line; without it words are token ids"
    )
    separator: str = Field("|", min_length=1, description="the token, or part of one, that stands for a space")
    unit: Literal["word", "character"] = Field("word", description="character: the character error rate")


class PerplexityOptions(MetricOptions):
    """exp of the mean negative log-likelihood of the tokens that a language model was fed, each given those before."""

    tokens: str = Field("input_ids", description="the input whose next token is predicted; not used with target:")
    mask: str | None = Field(
        None, description="the input that is 0 at padding; default: attention_mask if there is one"
    )
    ignore: int | None = Field(None, strict=True, description="a token id that is left out; negative ones always are")


class RetrievalOptions(MetricOptions):
    """Each sample's embedding as a query to all others of the set, by cosine."""

    k: int = Field(10, ge=1, strict=True, description="how many neighbours count")
    relevant: Literal["label", "source"] = Field(
        "label", description="label: those of the query's label; source: the source model's own k nearest"
    )
    measure: Literal["hit", "mrr"] = Field(
        "hit", description="hit: one relevant is among the k nearest; mrr: 1 / rank of the first, 0 beyond k"
    )

    @model_validator(mode="after")
    def _fits(self) -> RetrievalOptions:
        if self.relevant == "source" and (self.measure != "hit" or self.target is not None):
            raise ValueError("relevant: source takes no measure: or target:; it is the share of k nearest in common")
        return self


class SimilarityOptions(MetricOptions):
    """Mean cosine between each sample's embedding and the source model's."""


class PythonOptions(MetricOptions):
    """A callable of yours: `(predictions, targets) -> number`, or a class with update and compute."""

    call: str = Field(min_length=1, description="file.py:name, or module:name")
    kwargs: dict[str, JsonValue] = Field({}, description="keyword arguments, for the function or the class")
    better: Better = Field("higher", description="whether a higher or a lower number is better")
    outputs: tuple[str, ...] = Field((), description="several outputs: a prediction is then a dict of arrays")
    reads: tuple[str, ...] = Field((), description="files it reads; their bytes count towards the cache key")

    @field_validator("call")
    @classmethod
    def _two_parts(cls, value: str) -> str:
        split_callable(value)
        return value


@dataclass(frozen=True)
class Kind:
    """One kind of metric. main: the option that `kind: value` sets. low and high: what it can be at all."""

    options: type[MetricOptions]
    better: Better
    unit: str
    low: float
    high: float
    main: str
    source: str


_COUNTED = "counted over the labels"
KINDS: dict[str, Kind] = {
    "accuracy": Kind(AccuracyOptions, "higher", "fraction", 0, 1, "output", _COUNTED),
    "top_k": Kind(TopKOptions, "higher", "fraction", 0, 1, "k", _COUNTED),
    "f1": Kind(F1Options, "higher", "fraction", 0, 1, "average", "van Rijsbergen, Information Retrieval, 1979"),
    "iou": Kind(IouOptions, "higher", "fraction", 0, 1, "class", "Jaccard, 1912; Everingham et al., Pascal VOC, 2010"),
    "map": Kind(MapOptions, "higher", "fraction", 0, 1, "output", "Lin et al., Microsoft COCO, 2014"),
    "wer": Kind(WerOptions, "lower", "ratio", 0, math.inf, "decode", "Levenshtein, 1966, over words"),
    "perplexity": Kind(PerplexityOptions, "lower", "", 1, math.inf, "tokens", "Jelinek et al., 1977"),
    "retrieval": Kind(RetrievalOptions, "higher", "fraction", 0, 1, "k", "Manning et al., Information Retrieval, 2008"),
    "similarity": Kind(SimilarityOptions, "higher", "", -1, 1, "output", "Salton and McGill, 1983: the cosine measure"),
    "python": Kind(PythonOptions, "higher", "ratio", -math.inf, math.inf, "call", "the recipe's own callable"),
}


@dataclass(frozen=True)
class Metric:
    """One declared metric. at: its key path in the recipe."""

    name: str
    kind: str
    options: Any
    at: tuple[str | int, ...] = ("metric",)

    @property
    def better(self) -> Better:
        """Which way is better."""
        return self.options.better if isinstance(self.options, PythonOptions) else KINDS[self.kind].better

    @property
    def change(self) -> str:
        """What its change for the worse is called in bounds: "accuracy_drop", "wer_rise"."""
        return f"{self.name}_{'drop' if self.better == 'higher' else 'rise'}"

    def targets(self) -> tuple[str | None, ...]:
        """The labels it needs, None for the dataset's only one; () for a metric that needs none."""
        if isinstance(self.options, MapOptions):
            return (self.options.target_boxes, self.options.target_labels)
        if isinstance(self.options, PerplexityOptions) and self.options.target is None:
            return ()
        if isinstance(self.options, RetrievalOptions) and self.options.relevant == "source":
            return ()
        if isinstance(self.options, SimilarityOptions):
            return ()
        return (self.options.target,)

    def outputs(self) -> tuple[str, ...]:
        """The outputs it names."""
        options = self.options
        named = [options.output, *(getattr(options, key, None) for key in ("boxes", "scores"))]
        named += [options.labels] if isinstance(options, MapOptions) else []
        named += options.outputs if isinstance(options, PythonOptions) else []
        return tuple(name for name in named if name)

    def to_json(self) -> dict[str, Any]:
        """The metric as `metric_of` reads it, defaults included: part of the cache key."""
        options = self.options.model_dump(mode="json", by_alias=True)
        return {"name": self.name, self.kind: options}

    @property
    def needs(self) -> str | None:
        """The file or module of the recipe's that it cannot be measured without."""
        if isinstance(self.options, PythonOptions):
            return self.options.call
        return self.options.vocabulary if isinstance(self.options, WerOptions) else None

    def files(self, base: Path) -> list[Path]:
        """Every file that decides its value, besides the samples. Raises DataError (subject `metric.NAME`)."""
        options = self.options
        try:
            if isinstance(options, WerOptions) and options.vocabulary:
                return [existing(resolve_path(options.vocabulary, base))]
            if not isinstance(options, PythonOptions):
                return []
            return [*code_files(options.call, base), *(existing(resolve_path(text, base)) for text in options.reads)]
        except DataError as error:
            raise DataError(
                f"metric {self.name}: {error.what}", hint=error.hint, subject=f"metric.{self.name}"
            ) from error


def code_files(call: str, base: Path) -> list[Path]:
    """A callable's own source file first, then what it imports from beside it. Raises DataError."""
    place, _ = split_callable(call)
    if is_file(place):
        return local_files(existing(resolve_path(place, base)).absolute())
    file = locate_module(place)
    if file is None:
        hint = "install it, or name a file: path/to/file.py:name"
        raise DataError(f"there is no module {place!r} with Python source on this machine", hint=hint)
    return local_files(file, place)


def metric_of(data: Mapping[str, Any], at: tuple[str | int, ...] = ("metric",)) -> Metric:
    """The metric of an entry `{name:, KIND: options}`. Raises ValidationError or ValueError."""
    kind = next(key for key in data if key in KINDS)
    given = data[kind]
    if not isinstance(given, Mapping):
        main = KINDS[kind].main
        given = {} if given is None else {main: given}
    options = KINDS[kind].options.model_validate(given)
    return Metric(data.get("name") or _default_name(kind, options), kind, options, at)


def _default_name(kind: str, options: Any) -> str:
    if isinstance(options, PythonOptions):
        return options.call.rpartition(":")[2].rpartition(".")[2]
    return f"top{options.k}" if isinstance(options, TopKOptions) else kind


NAME = r"[A-Za-z][A-Za-z0-9_]*"


def name_fault(name: str) -> str:
    """Why a metric cannot be called so; "" where it can."""
    if not re.fullmatch(NAME, name):
        return "use letters, digits and underscores"
    if name in METRICS and name != "accuracy":
        return "optkit measures that of every output already; call it otherwise"
    if re.search(r"_(lower|upper|drop|rise)$", name):
        return "bounds use such endings for its interval and its change; call it otherwise"
    return ""


def figures(metric: Metric) -> Iterator[MetricInfo]:
    """The figures of a metric that can be bounded: value, drop or rise, and both ends of either's interval."""
    kind, lower = KINDS[metric.kind], metric.better == "lower"
    span = kind.high - kind.low
    for word, part, better, low, high, unit in (
        (metric.name, "value", metric.better, kind.low, kind.high, kind.unit),
        (metric.change, "change", "lower", -span, span, kind.unit),
    ):
        what = f"{metric.name}, artifact minus source" if lower else f"{metric.name}, source minus artifact"
        meaning = metric.name if part == "value" else what
        for end, told in (("", ""), ("_lower", ", lower end of its interval"), ("_upper", ", upper end")):
            yield MetricInfo(f"{word}{end}", better, "task", unit, low, high, f"{meaning}{told}", kind.source,
                             metric.name, f"{part}{end}")  # fmt: skip


def bound_table(metrics: Sequence[Metric]) -> Mapping[str, MetricInfo]:
    """Every metric that a bound may name in a recipe that declares these; its own accuracy replaces the built-in."""
    if not metrics:
        return METRICS
    kept = {name: info for name, info in METRICS.items() if not name.startswith("accuracy")}
    return {**kept, **{info.name: info for metric in metrics for info in figures(metric)}}


def metrics_of(check: Mapping[str, Any]) -> tuple[Metric, ...]:
    """The declared metrics of a check as a report or a delivery's record tells it."""
    return tuple(metric_of(entry) for entry in check.get("metrics") or ())
