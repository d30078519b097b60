"""Samples from image files, prepared one at a time with Pillow."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optkit.artifact import Dim, TensorSpec
from optkit.data.preprocess import Preprocess
from optkit.data.source import Array, Row, Source, fault
from optkit.errors import DataError, did_you_mean
from optkit.plugin import need
from optkit.spec.dataspec import ImageData, image_classes, image_files, resolve_path


def open_images(
    spec: ImageData, base: Path, inputs: Sequence[TensorSpec], dims: Mapping[str, Dim], name: str
) -> Source:
    """One sample per file: `(channel, height, width)` or `(height, width, channel)`, as the layout says."""
    need("PIL.Image", "pillow")
    target = _target(spec, inputs, name)
    how = _settled(spec.preprocess, target, name)
    folder = resolve_path(spec.images, base)
    paths = image_files(spec, base, name)
    if not paths:
        raise fault(name, f"there is no image in {folder}", "check the path; sub-folders are searched too")
    classes = image_classes(folder) if spec.label else []
    loose = next((path for path in paths if path.parent == folder), None)
    if spec.label and loose:
        raise fault(
            name,
            f"{loose.name} lies in no sub-folder, so label: folder gives it no label",
            "put each image into the folder of its class, or drop label:",
        )

    def rows() -> Iterator[Row]:
        for index, path in enumerate(paths):
            try:
                image = load_image(path, how)
            except DataError as error:
                raise fault(name, f"sample {index}, {path.relative_to(folder)}: {error.what}", error.hint) from error
            yield {target.name: image}, classes.index(path.relative_to(folder).parts[0]) if spec.label else None

    preprocessing = {"kind": "images", "input": target.name, **how.model_dump(mode="json")}
    if spec.label:
        preprocessing["classes"] = classes
    return Source(rows, lambda: len(paths), spec.label is not None, preprocessing)


def _target(spec: ImageData, inputs: Sequence[TensorSpec], name: str) -> TensorSpec:
    names = [i.name for i in inputs]
    if spec.input is not None and spec.input not in names:
        raise fault(name, f"the model has no input {spec.input!r}", did_you_mean(spec.input, names))
    if len(inputs) != 1:
        raise fault(
            name,
            f"images feed one input, the model has {len(inputs)}: {', '.join(names)}",
            "use python: with a callable that returns all of them",
        )
    return inputs[0]


def _settled(how: Preprocess, target: TensorSpec, name: str) -> Preprocess:
    """The preprocessing with layout and dtype filled in. Raises DataError when they contradict the input."""
    layout = how.layout or (target.layout if target.layout in ("NCHW", "NHWC") else None)
    if how.layout and target.layout in ("NCHW", "NHWC") and how.layout != target.layout:
        raise fault(
            name,
            f"preprocess makes {how.layout}, input {target.name!r} is declared {target.layout}",
            "drop preprocess.layout",
        )
    if how.dtype and how.dtype != target.dtype:
        raise fault(
            name, f"preprocess makes {how.dtype}, input {target.name!r} takes {target.dtype}", "drop preprocess.dtype"
        )
    if target.dtype not in ("float32", "float16", "float64", "uint8"):
        raise fault(
            name,
            f"input {target.name!r} takes {target.dtype}; images are made as float or uint8",
            "use python: with a callable that makes the samples",
        )
    if target.dtype == "uint8" and (how.scale != 1 or how.mean or how.std):
        raise fault(
            name,
            f"input {target.name!r} takes uint8 pixels, which scale, mean and std would change",
            "drop them: the model normalises inside",
        )
    return how.model_copy(update={"layout": layout or "NCHW", "dtype": target.dtype})


def load_image(path: Path, how: Preprocess) -> Array:
    """The array of one file. Raises DataError when it can't be read or is smaller than the crop."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # MPO: a photograph and its preview
                    raise DataError(f"holds {getattr(image, 'n_frames', 0)} frames", hint="save one image per file")
                if image.mode.startswith(("I", "F")):
                    raise DataError(f"has more than 8 bits per channel (mode {image.mode})", hint="save it as 8-bit")
                picture = image.convert("L" if how.color == "L" else "RGB")
    except UnidentifiedImageError as error:
        raise DataError("is no image that Pillow knows", hint="remove or replace the file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"can't be read: {error}", hint="remove or replace the file") from error
    return _array(_cut(_resize(picture, how), how), how)


def _resize(picture: Any, how: Preprocess) -> Any:
    from PIL import Image

    if how.resize is None:
        return picture
    if isinstance(how.resize, int):  # as torchvision: the long side is rounded down
        short = min(picture.size)
        width, height = (how.resize if side == short else int(how.resize * side / short) for side in picture.size)
    else:
        height, width = how.resize
    return picture.resize((width, height), Image.Resampling[how.resample.upper()])


def _cut(picture: Any, how: Preprocess) -> Any:
    if how.crop is None:
        return picture
    (height, width), (have_width, have_height) = how.crop, picture.size
    if have_width < width or have_height < height:
        raise DataError(
            f"is {have_height} x {have_width}, smaller than crop {height} x {width}",
            hint="resize to at least the crop's size first",
        )
    top, left = round((have_height - height) / 2), round((have_width - width) / 2)
    return picture.crop((left, top, left + width, top + height))


def _array(picture: Any, how: Preprocess) -> Array:
    array = np.array(picture)
    array = array[..., None] if array.ndim == 2 else array  # (height, width, channel)
    if how.color == "BGR":
        array = array[..., ::-1]
    if how.dtype != "uint8":
        # In float64, rounded once at the end: within half a unit of the last place of any order of operations.
        values = array.astype(np.float64) * how.scale
        if how.mean:
            values -= np.asarray(how.mean)
        if how.std:
            values /= np.asarray(how.std)
        array = values.astype(how.dtype)
    if how.layout == "NCHW":
        array = array.transpose(2, 0, 1)
    return np.ascontiguousarray(array)
