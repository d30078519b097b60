"""What a recipe may write under `data:`: datasets described and their files found; reads no sample, loads no numpy."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, JsonValue, ValidationError, field_validator
from pydantic_core import InitErrorDetails

from optkit.artifact import digest_file, digest_of
from optkit.data.imports import find_top, local_files, locate_module
from optkit.data.preprocess import Count, Preprocess, Section
from optkit.errors import DataError, UserError, did_you_mean
from optkit.plugin import install_line

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})

PathText = Annotated[str, BeforeValidator(lambda v: str(v) if isinstance(v, PurePath) else v), Field(min_length=1)]
Limit = Annotated[
    Count | None,
    Field(
        description="Use at most this many samples: the first ones (images: files spread "
        "evenly over the sorted list, so that every folder is drawn from)."
    ),
]


Label = Annotated[
    str | tuple[str, ...] | None,
    Field(description="What holds each sample's label, or several: [boxes, labels]. It is not fed to the model."),
    AfterValidator(lambda value: _distinct(value)),
]


def _distinct(value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
        raise ValueError(f"{list(value)!r} is no list of labels; name each once")
    return value


class NpzData(Section):
    """Arrays in a NumPy .npz file, one per model input; axis 0 counts the samples."""

    npz: PathText = Field(description="The .npz file.")
    label: Label = None
    ignore: tuple[str, ...] = Field(default=(), description="Arrays in the file that are not used.")
    transpose: dict[str, tuple[int, ...]] = Field(
        default={},
        description="Per array the order its samples' axes are put into, such as {image: [1, 2, 0]} for channels last.",
    )
    limit: Limit = None

    @field_validator("transpose")
    @classmethod
    def _permutations(cls, value: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        for name, order in value.items():
            if sorted(order) != list(range(len(order))):
                what = f"{list(order)} for {name!r} is no order of axes"
                raise ValueError(f"{what}; number a sample's axes from 0, the batch left out: [1, 2, 0]")
        return value


class ImageData(Section):
    """Image files of a folder and its sub-folders, sorted by path."""

    images: PathText = Field(description="The folder.")
    preprocess: Preprocess = Field(default=Preprocess(), description="How a file becomes an array.")
    input: str | None = Field(
        default=None, description="The model input that takes the image; may be left out if it is the only one."
    )
    label: Literal["folder"] | None = Field(
        default=None, description="folder: the label is the index of the top sub-folder's name among the sorted names."
    )
    ignore: tuple[str, ...] = Field(default=(), description="Patterns of file names to leave out, such as '*.txt'.")
    limit: Limit = None


class TextData(Section):
    """Texts in a file with one JSON object per line, tokenised."""

    jsonl: PathText = Field(description="The file with one JSON object per line.")
    tokenizer: PathText = Field(description="tokenizer.json of Hugging Face tokenizers, or the folder it is in.")
    text: str | tuple[str, str] = Field(description="Key of the text, or two keys for a pair of texts.")
    max_length: Count = Field(description="Most tokens of a sample, special tokens included; longer ones are cut.")
    padding: Literal["longest", "max_length"] = Field(
        default="longest",
        description="longest: pad to the longest text of a batch; max_length: every sample to max_length.",
    )
    pad_token: str | None = Field(default=None, description="Token to pad with, where the tokenizer states none.")
    label: Label = None
    limit: Limit = None

    @field_validator("text", mode="before")
    @classmethod
    def _keys(cls, value: Any) -> Any:
        keys = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
        if not all(isinstance(key, str) and key for key in keys):
            raise ValueError(f"{value!r} names no text; give one key, or [first, second] for pairs")
        return value


class PythonData(Section):
    """Samples from a Python callable that returns an iterable of dicts, and the same ones at every call."""

    python: PathText = Field(description="The callable: file.py:name, or module:name.")
    kwargs: dict[str, JsonValue] = Field(default_factory=dict, description="Keyword arguments for the callable.")
    reads: tuple[PathText, ...] = Field(
        default=(), description="Files and folders the callable reads; their bytes become part of the dataset's digest."
    )
    label: Label = None
    limit: Limit = None

    @field_validator("python")
    @classmethod
    def _two_parts(cls, value: str) -> str:
        split_callable(value)
        return value


class RandomData(Section):
    """Synthetic samples, drawn from each input's declared `range`: they show that it runs, not that it is right."""

    random: Count = Field(description="How many samples.")
    seed: int = Field(default=0, strict=True, ge=0, description="Seed of the generator.")


AnyData = NpzData | ImageData | TextData | PythonData | RandomData
KINDS: dict[str, type[NpzData | ImageData | TextData | PythonData | RandomData]] = {
    "npz": NpzData, "images": ImageData, "jsonl": TextData, "python": PythonData, "random": RandomData,
}  # fmt: skip


def parse_data(value: Any) -> AnyData:
    """The typed form of one entry under `data:`; the key that is present decides the kind.

    Raises ValidationError with every mistake. A message with a remedy reads "what; remedy".
    """
    if isinstance(value, AnyData):
        return value
    if not isinstance(value, Mapping):
        raise _unclear(value, f"a dataset is a mapping such as {{npz: file.npz}}, not {value!r}")
    given = [key for key in KINDS if key in value]
    if len(given) > 1:
        raise _unclear(value, f"a dataset has one source, this one has {' and '.join(given)}; make it two datasets")
    if not given:
        near = [f"; {hint}" for key in value if (hint := did_you_mean(str(key), KINDS, listing=False))]
        found = ", ".join(map(str, value)) or "no key"
        raise _unclear(value, f"a dataset needs one of {', '.join(KINDS)}, found {found}{''.join(near[:1])}")
    model = KINDS[given[0]]
    try:
        return model.model_validate(value)
    except ValidationError as error:
        lines = [_line(given[0], model, details) for details in error.errors(include_url=False)]
    raise ValidationError.from_exception_data(model.__name__, lines)


def _unclear(value: Any, what: str) -> ValidationError:
    line = InitErrorDetails(type="value_error", loc=(), input=value, ctx={"error": ValueError(what)})
    return ValidationError.from_exception_data("data", [line])


def _line(kind: str, model: type[BaseModel], details: Any) -> InitErrorDetails:
    """One line of a validation error as it was, but for an unknown key, which is compared with this kind's own keys."""
    if details["type"] != "extra_forbidden":
        return InitErrorDetails(
            type=details["type"], loc=details["loc"], input=details["input"], ctx=details.get("ctx", {})
        )
    *outer, key = details["loc"]
    known = Preprocess.model_fields if outer else model.model_fields
    error = f"{'preprocess' if outer else f'{kind} data'} has no key {key!r}; {did_you_mean(str(key), known)}"
    return InitErrorDetails(
        type="value_error", loc=details["loc"], input=details["input"], ctx={"error": ValueError(error)}
    )


DataSpec = Annotated[AnyData, BeforeValidator(parse_data)]


def label_names(spec: AnyData) -> tuple[str, ...]:
    """The labels a dataset says it has; of images whose folder is their class, "folder"."""
    label = getattr(spec, "label", None)
    return tuple(label) if isinstance(label, tuple) else (label,) if label else ()


def split_callable(text: str) -> tuple[str, str]:
    """("file.py", "name") of "file.py:name". Raises ValueError when either part is missing."""
    place, colon, name = text.rpartition(":")
    if not colon or not place or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"{text!r} names no callable; write file.py:name, or module:name")
    return place, name


def is_file(place: str) -> bool:
    """Whether the first part of a callable is a file, not a module's dotted name."""
    return place.endswith(".py") or "/" in place or "\\" in place


def resolve_path(text: str, base: Path) -> Path:
    """The path a recipe means: relative to `base`, or inside an installed package (`package:NAME/inner/path`).

    The package is located, not imported. Raises UserError when it is not installed. The path itself may not exist.
    """
    if not text.startswith("package:"):
        return base / Path(text).expanduser()
    name, _, inner = text.removeprefix("package:").partition("/")
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        raise UserError(f"{text!r} names no package", hint="write package:NAME/inner/path, NAME as in `import NAME`")
    spec = find_top(parts[0])
    if spec is None:
        raise UserError(
            f"{text}: the package {parts[0]!r} is not installed", hint=install_line(parts[0].replace("_", "-"))
        )
    if not spec.submodule_search_locations:
        raise UserError(
            f"{text}: {parts[0]!r} is a single module, not a package with files inside",
            hint=f"name the file itself: {spec.origin}",
        )
    found = [Path(place, *parts[1:], inner) for place in spec.submodule_search_locations]
    return next((path for path in found if path.exists()), found[0])


def _fault(name: str | None, what: str, hint: str = "") -> DataError:
    subject = f"data.{name}" if name else "data"
    return DataError(f"{subject}: {what}" if name else what, hint=hint, subject=subject)


def existing(path: Path, name: str | None = None) -> Path:
    """`path`, which must exist. Raises DataError with the nearest name in its folder."""
    if path.exists():
        return path
    if not path.parent.is_dir():
        raise _fault(
            name, f"{path} does not exist", f"nor does the folder {path.parent}; paths are relative to the recipe"
        )
    raise _fault(
        name,
        f"{path} does not exist",
        did_you_mean(path.name, (p.name for p in path.parent.iterdir()), listing=False)
        or "paths are relative to the recipe",
    )


def image_files(spec: ImageData, base: Path, name: str | None = None) -> list[Path]:
    """The image files that are the samples, sorted by path. Raises DataError for a file that is no image."""
    folder = existing(resolve_path(spec.images, base), name)
    if not folder.is_dir():
        raise _fault(name, f"{folder} is not a folder", f"images: {folder.parent}")
    found = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda p: p.relative_to(folder).parts)
    found = [
        path
        for path in found
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not any(fnmatch.fnmatch(path.name, pattern) for pattern in spec.ignore)
    ]
    others = [path for path in found if path.suffix.lower() not in IMAGE_SUFFIXES]
    if others:
        raise _fault(
            name,
            f"{len(others)} file(s) in {folder} are no images, the first is {others[0].relative_to(folder)}",
            f"move them away, or leave them out with ignore: ['*{others[0].suffix}']",
        )
    keep = min(spec.limit or len(found), len(found))
    return [found[i * len(found) // keep] for i in range(keep)]


def image_classes(folder: Path) -> list[str]:
    """The sub-folder names in the order that `label: folder` numbers them, from 0."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def tokenizer_file(spec: TextData, base: Path, name: str | None = None) -> Path:
    """The tokenizer.json that is meant."""
    path = existing(resolve_path(spec.tokenizer, base), name)
    return existing(path / "tokenizer.json", name) if path.is_dir() else path


def python_files(spec: PythonData, base: Path, name: str | None = None) -> list[Path]:
    """The callable's own source file first, then what it imports from beside it."""
    place, _ = split_callable(spec.python)
    if is_file(place):
        return local_files(existing(resolve_path(place, base), name).absolute())
    file = locate_module(place)
    if file is None:
        raise _fault(
            name,
            f"there is no module {place!r} with Python source on this machine",
            "install it, or name a file: path/to/file.py:callable",
        )
    return local_files(file, place)


def files(spec: AnyData, base: Path, name: str | None = None) -> list[Path]:
    """Every file whose bytes decide the samples. Raises DataError (subject `data.<name>`) for a missing one.

    Of a Python callable: its source files and what `reads` names; whatever else it opens is not known.
    """
    if isinstance(spec, NpzData):
        return [existing(resolve_path(spec.npz, base), name)]
    if isinstance(spec, ImageData):
        return image_files(spec, base, name)
    if isinstance(spec, TextData):
        return [existing(resolve_path(spec.jsonl, base), name), tokenizer_file(spec, base, name)]
    if isinstance(spec, PythonData):
        read = [existing(resolve_path(text, base), name) for text in spec.reads]
        inner = [sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] for path in read]
        return python_files(spec, base, name) + [path for part in inner for path in part]
    return []


def content_key(spec: AnyData) -> dict[str, Any]:
    """JSON data: the part of `spec` that decides the samples, without paths.

    The model's declared inputs and dims decide too (dtype and layout of images, which token arrays, random shapes).
    """
    data = spec.model_dump(mode="json", exclude={"npz", "images", "jsonl", "tokenizer", "reads"})
    if isinstance(spec, PythonData):
        data["python"] = split_callable(spec.python)[1]
    return {"kind": next(kind for kind, model in KINDS.items() if isinstance(spec, model)), **data}


def content_digest(spec: AnyData, base: Path, name: str | None = None) -> str:
    """sha256 over `content_key` and the bytes of `files`, without reading a sample. Raises as `files` does."""
    key = [content_key(spec), [digest_file(path) for path in files(spec, base, name)]]
    if isinstance(spec, ImageData) and spec.label:
        folder = resolve_path(spec.images, base)
        key += [image_classes(folder), [p.relative_to(folder).as_posix() for p in image_files(spec, base, name)]]
    return digest_of(key)


def tools(spec: AnyData) -> tuple[str, ...]:
    """Distributions whose versions decide the samples' values."""
    if isinstance(spec, ImageData):
        return ("pillow", "numpy")
    return {TextData: ("tokenizers",), RandomData: ("numpy",)}.get(type(spec), ())
