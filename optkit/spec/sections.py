"""The sections of a recipe as typed models: their keys, and what each may hold."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from optkit.artifact import DTYPES, Dim
from optkit.errors import did_you_mean
from optkit.spec.dataspec import split_callable

SOURCE = "source"
"""The id by which steps name the source model."""

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$"


class Section(BaseModel):
    """Base of a recipe's sections: frozen, an unknown key is an error; a message with a remedy reads "what; remedy"."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=())


class TorchSource(Section):
    """A callable that returns an nn.Module, and its weights."""

    torch: str = Field(description="FILE.py:NAME or package.module:NAME of a callable that returns an nn.Module")
    weights: str | None = Field(None, description=".safetensors, .pt or .pth with the state dict")
    kwargs: dict[str, Any] = Field({}, description="keyword arguments for the callable")
    trust_pickle: bool = Field(
        False, strict=True, description="allow weights that need a full, code-running unpickling"
    )
    strict: bool = Field(
        True, strict=True, description="false: the weights may lack some of the model's tensors, or have more"
    )
    files: list[str] = Field([], description="further files the callable reads; they count towards the cache key")


class ExportedSource(Section):
    """A torch.export program."""

    pt2: str = Field(description="a .pt2 file from torch.export.save")


class TorchScriptSource(Section):
    """A TorchScript module."""

    torchscript: str = Field(description="a .pt file from torch.jit.save")


class PickleSource(Section):
    """A whole pickled nn.Module; unpickling it runs its code."""

    pickle: str = Field(description="a .pt or .pth file from torch.save(module)")
    trust_pickle: bool = Field(False, strict=True, description="must be true: unpickling runs code from the file")


class HuggingFaceSource(Section):
    """A local Hugging Face model folder."""

    huggingface: str = Field(description="a folder with config.json and weights")
    class_: str | None = Field(None, alias="class", description="transformers Auto class; default: the config's own")
    pooling: Literal["mean", "cls"] | None = Field(None, description="pool the last hidden state into an embedding")
    normalize: bool = Field(False, strict=True, description="divide the embedding by its L2 norm")


class OnnxSource(Section):
    """An ONNX file, with its external data beside it."""

    onnx: str = Field(description="a .onnx file")


class OpenVINOSource(Section):
    """An OpenVINO IR."""

    openvino: str = Field(description="a .xml file; its .bin lies beside it")


class SavedModelSource(Section):
    """A TensorFlow SavedModel."""

    savedmodel: str = Field(description="the folder with saved_model.pb in it")
    signature: str | None = Field(None, description="which of its signatures; default: serving_default")


class KerasSource(Section):
    """A Keras model with its architecture and weights. No code in it is run."""

    keras: str = Field(description="a .keras file, or a .h5 file from model.save")
    custom_objects: str | None = Field(
        None, description="FILE.py:NAME of a mapping from names to the model's own layers and functions"
    )
    files: list[str] = Field([], description="further files that code reads; they count towards the cache key")

    @field_validator("custom_objects")
    @classmethod
    def _callable(cls, value: str | None) -> str | None:
        if value is not None:
            split_callable(value)
        return value


class TFGraphSource(Section):
    """A frozen TensorFlow graph."""

    tf_graph: str = Field(description="a .pb file with a GraphDef whose weights are constants")
    inputs: list[str] = Field([], description="names of its input tensors, such as [image]")
    outputs: list[str] = Field([], description="names of its output tensors, such as [head/Softmax]")


class FileSource(Section):
    """A model file of a format that a plug-in brings."""

    file: str = Field(description="a model file of a format that a plug-in's runner opens")
    format: str | None = Field(None, description="its format; default: by the file's ending")
    files: list[str] = Field([], description="names of further files that belong to it and lie beside it")


ModelSource = (
    TorchSource
    | ExportedSource
    | TorchScriptSource
    | PickleSource
    | HuggingFaceSource
    | OnnxSource
    | OpenVINOSource
    | SavedModelSource
    | KerasSource
    | TFGraphSource
    | FileSource
)

MODEL_KINDS: dict[str, type[ModelSource]] = {
    "torch": TorchSource,
    "pt2": ExportedSource,
    "torchscript": TorchScriptSource,
    "pickle": PickleSource,
    "huggingface": HuggingFaceSource,
    "onnx": OnnxSource,
    "openvino": OpenVINOSource,
    "savedmodel": SavedModelSource,
    "keras": KerasSource,
    "tf_graph": TFGraphSource,
    "file": FileSource,
}


class InputSpec(Section):
    """One input of the source model."""

    shape: list[int | str] = Field(description="per axis a size or the name of a dynamic dim, batch axis included")
    dtype: str = Field("float32", description="element type, as numpy names it")
    layout: str | None = Field(None, description="axis letters, such as NCHW")
    range: tuple[float, float] | None = Field(None, description="smallest and largest value the input may take")

    @field_validator("shape", mode="before")
    @classmethod
    def _axes(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{value!r} is no list of axes; for example [batch, 3, 224, 224]")
        for axis in value:
            if isinstance(axis, bool) or not isinstance(axis, int | str):
                raise ValueError(f"{axis!r} is neither a size nor a dim's name; write a whole number or a word")
            if isinstance(axis, int) and axis < 1:
                raise ValueError(f"a size must be at least 1, got {axis}; name a dynamic dim with a word")
            if isinstance(axis, str) and not axis.isidentifier():
                raise ValueError(f"{axis!r} cannot name a dim; use letters, digits and underscores")
        return value

    @field_validator("dtype")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in DTYPES:
            raise ValueError(f"unknown dtype {value!r}; {did_you_mean(value, DTYPES)}")
        return value

    @field_validator("range")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError(f"[{value[0]:g}, {value[1]:g}] is no range; write [smallest, largest]")
        return value

    @model_validator(mode="after")
    def _fits(self) -> InputSpec:
        if self.layout is not None and len(self.layout) != len(self.shape):
            raise ValueError(
                f"layout {self.layout} has {len(self.layout)} letters for {len(self.shape)} axes; give one per axis"
            )
        return self


class DimSpec(Section):
    """The sizes of one dynamic dim."""

    min: int = Field(1, ge=1, strict=True, description="smallest size")
    opt: int | None = Field(None, ge=1, strict=True, description="size to tune for; default: min, or 2 where min is 1")
    max: int = Field(ge=1, strict=True, description="largest size")

    @model_validator(mode="after")
    def _ordered(self) -> DimSpec:
        sizes = [size for size in (self.min, self.opt, self.max) if size is not None]
        if sizes != sorted(sizes):
            given = "min <= max" if self.opt is None else "min <= opt <= max"
            raise ValueError(
                f"needs {given}, got {', '.join(map(str, sizes))}; for example {{min: 1, opt: 8, max: 64}}"
            )
        return self

    @property
    def dim(self) -> Dim:
        """The range, with opt filled in."""
        return Dim(self.min, self.opt if self.opt is not None else min(max(self.min, 2), self.max), self.max)


class Tolerance(Section):
    """How much worse than its baseline a run may be; shares as 2% or 0.02."""

    sqnr_db: float = Field(1.0, ge=0, description="dB of SQNR that the worst sample may lose")
    size: float = Field(0.01, ge=0, description="share by which files may grow")
    metric: float = Field(
        0.005, ge=0, description="points that a task metric may lose; of one in other units, the share"
    )
    speed: float = Field(0.1, ge=0, lt=1, description="share by which a speed, as a ratio, may fall")
    latency: float | None = Field(
        None, ge=0, description="share by which the median latency may grow, on the same hardware; default: not judged"
    )

    @field_validator("size", "metric", "speed", "latency", mode="before")
    @classmethod
    def _percent(cls, value: Any) -> Any:
        if isinstance(value, str) and value.strip().endswith("%"):
            try:
                return float(value.strip().removesuffix("%")) / 100
            except ValueError:
                raise ValueError(f"{value!r} is no share; write 2% or 0.02") from None
        return value


class BaselineSpec(Tolerance):
    """The baseline a run is held against."""

    file: str = Field(description="what optkit baseline save wrote")

    @property
    def tolerance(self) -> Tolerance:
        """The tolerances alone."""
        return Tolerance(**{name: getattr(self, name) for name in Tolerance.model_fields})

    @property
    def stated(self) -> frozenset[str]:
        """The tolerances that the recipe itself states."""
        named = self.model_fields_set & set(Tolerance.model_fields)
        return frozenset(name for name in named if getattr(self, name) is not None)


class BenchmarkSpec(Section):
    """What the deliveries are measured at, beside the source, once all of them are made."""

    batch: list[int] = Field([], description="samples per inference; default: the batch dim's opt size")
    threads: list[int] = Field([], description="threads of each runtime; default: threads:, or all cores")
    settings: dict[str, dict[str, Any]] = Field(
        {}, description="runtime settings by format: what they are for is measured with them as well"
    )
    against: str = Field(SOURCE, description="the delivery that speeds are ratios to; default: the source model")
    seconds: float = Field(3.0, gt=0, le=600, description="how long each runs at most, per batch and number of threads")

    @field_validator("batch", "threads")
    @classmethod
    def _sizes(cls, value: list[int]) -> list[int]:
        if wrong := [n for n in value if n < 1]:
            raise ValueError(f"{wrong[0]} is no size; write whole numbers from 1")
        if len(set(value)) != len(value):
            raise ValueError(f"{value} names a size twice; name each once")
        return value


class StepSpec(Section):
    """One step as written: a conversion by its target, or a pass by its name."""

    id: str = Field(pattern=_NAME, description="the step's name; letters, digits, . _ -")
    from_: str = Field(SOURCE, alias="from", description="the step whose output it takes; default: the source model")
    to: str | None = Field(None, description="target format: the shortest faithful way there is taken")
    use: str | None = Field(None, description="a pass by name; see `optkit passes`")
    with_: dict[str, Any] = Field({}, alias="with", description="the pass's options; see `optkit passes NAME`")
    data: str | None = Field(None, description="the dataset to fit on (calibration)")
    check: list[str] = Field([], description='bounds, such as "cosine >= 0.99" or "logits.top1_agreement >= 99%"')
    must: list[Literal["faster", "smaller"]] = Field(
        [], description="what it must be beside the step it comes from, measured here: faster, smaller"
    )
    gate: list[str] = Field([], description='what it may take or must gain, such as "size <= 10 MB" or "speedup >= 2"')
    runtime: dict[str, Any] = Field(
        {},
        description="settings of the runtime that it is checked, raced and delivered with, by the runtime's own names",
    )
    waive: str | None = Field(None, description="the reason why this step's check may be skipped")
    on_target: bool = Field(
        False, strict=True, description="a check this machine cannot run is meant to run on the target"
    )
    timeout: float | None = Field(None, gt=0, strict=True, description="seconds after which the step is stopped")
    python: str | None = Field(None, description="interpreter of another environment to run this step in")

    @field_validator("waive")
    @classmethod
    def _reasoned(cls, value: str | None) -> str | None:
        if value is not None and len(value.strip()) < 8:
            raise ValueError(f"{value!r} is no reason; write a sentence that the report can show")
        return value
