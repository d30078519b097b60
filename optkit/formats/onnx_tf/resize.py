"""ONNX's Resize and Upsample in TensorFlow; see `optkit.formats.onnx_tf.translate`.

TensorFlow's own kernels serve where they compute the same; every other way of ONNX's to resize is linear along each
axis, so it is a product with a matrix of weights that is made here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optkit.formats.onnx_tf.image import image
from optkit.formats.onnx_tf.translate import Build, Image, Node, Unsupported, operator


@operator("Resize", "Upsample", raw=True)
def resize(build: Build, node: Node, x: Any, *given: Any) -> Any:
    tf = build.tf
    roi, scales, sizes = None, None, None
    if node.kind == "Upsample" or len(given) == 1:
        scales = given[0] if given else node.get("scales")
    else:
        roi, scales, sizes = (*given, None, None)[:3]
    how = {"mode": node.get("mode", "nearest"), "at": node.get("coordinate_transformation_mode", "half_pixel"),
           "nearest": node.get("nearest_mode", "round_prefer_floor")}  # fmt: skip
    if node.kind == "Upsample" or build.opset < 11:
        how |= {"at": "asymmetric", "nearest": "floor"}
    if how["at"] == "tf_crop_and_resize" or roi_matters(build, roi, how["at"]):
        raise Unsupported("it crops")
    if node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unsupported("it keeps the ratio of its sides")
    if node.get("antialias"):
        raise Unsupported("it smooths (antialias)")
    x = image(build, x)
    rank = x.shape.rank
    over = [a % rank for a in node.get("axes") or range(rank)]
    grown, asked = _known(build, scales, over, rank), _known(build, sizes, over, rank)
    if any(grown.get(axis, 1.0) != 1.0 for axis in (0, 1)):
        raise Unsupported("it resizes batch or channels")
    sized = build.shape(x)
    target = [_target(build, sized[axis - 1], asked.get(axis), grown.get(axis, 1.0)) for axis in range(2, rank)]
    if rank == 4 and (made := _native(tf, x, target, how)) is not None:
        return Image(made)
    if not all(isinstance(t.out, int) and isinstance(t.size, int) for t in target):
        raise Unsupported("the size of the image must be known for this way to resize")
    return Image(_by_matrices(build, node, x, target, how))


@dataclass(frozen=True)
class Target:
    """What an axis of space becomes. size and out may be scalar tensors; factor is then None where it is not known.

    exact: `factor` is just out over size, as TensorFlow's kernels reckon.
    """

    size: Any
    out: Any
    factor: float | None
    exact: bool

    @property
    def whole(self) -> bool:
        """Whether it grows by a whole factor."""
        return self.exact and self.factor is not None and self.factor == int(self.factor)


def _target(build: Build, size: Any, asked: Any, factor: float) -> Target:
    if asked is not None:
        known = isinstance(size, int) and isinstance(asked, int)
        return Target(size, asked, asked / size if known else None, True)
    if isinstance(size, int):
        out = int(size * factor)
        return Target(size, out, factor, abs(size * factor - out) < 1e-4)
    if factor != int(factor):
        raise Unsupported("the size of the image must be known where it grows by a fraction")
    return Target(size, size * int(factor), factor, True)


def roi_matters(build: Build, roi: Any, at: str) -> bool:
    """Whether a region of interest is asked for; it is empty, or ignored, but for one mode."""
    return at == "tf_crop_and_resize" and roi is not None


def _known(build: Build, values: Any, over: list[int], rank: int) -> dict[int, Any]:
    """Per axis what is asked for, a number or, where that is not known now, a scalar tensor; {} where nothing is."""
    if values is None:
        return {}
    found = build.static(values)
    if found is None:
        partly = build.tf.get_static_value(values, partial=True)
        parts = [None] * len(over) if partly is None else list(partly)
        return {axis: values[n] if part is None else part.item()
                for n, (axis, part) in enumerate(zip(over, parts, strict=True)) if axis > 1}  # fmt: skip
    found = found.reshape(-1)
    return {axis: n.item() for axis, n in zip(over, found, strict=True)} if len(found) else {}


def _native(tf: Any, x: Any, target: list[Target], how: dict[str, str]) -> Any:
    """By TensorFlow's own kernel, or None."""
    out = tf.stack([tf.cast(t.out, tf.int32) for t in target])
    known = [t.out for t in target if isinstance(t.out, int)]
    if how["mode"] == "nearest":
        # Where the size grows by a whole factor these all take the pixel that lies under the middle.
        same = (how["at"], how["nearest"]) in (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"),
                                               ("half_pixel", "round_prefer_ceil"))  # fmt: skip
        ok = same and all(t.whole for t in target)
        return tf.compat.v1.image.resize_nearest_neighbor(x, out) if ok else None
    if how["mode"] != "linear" or x.dtype != tf.float32 or not all(t.exact for t in target):
        return None
    several = len(known) == len(target) and min(known) > 1
    if how["at"] == "half_pixel" or (how["at"] == "pytorch_half_pixel" and (several or len(known) < len(target))):
        return tf.raw_ops.ResizeBilinear(images=x, size=out, align_corners=False, half_pixel_centers=True)
    if how["at"] == "align_corners" and several:
        return tf.raw_ops.ResizeBilinear(images=x, size=out, align_corners=True)
    if how["at"] == "asymmetric":
        return tf.raw_ops.ResizeBilinear(images=x, size=out, align_corners=False)
    return None


def _by_matrices(build: Build, node: Node, x: Any, target: list[Target], how: dict[str, str]) -> Any:
    tf = build.tf
    for axis, wanted in enumerate(target, start=1):
        size, out, factor = wanted.size, wanted.out, wanted.factor or 1.0
        if out == size and factor == 1.0:
            continue
        if how["at"] == "align_corners" and not wanted.exact:
            raise Unsupported("it aligns corners of a size that is no whole number of pixels")
        weights = matrix(size, out, factor, how, node.get("cubic_coeff_a", -0.75), bool(node.get("exclude_outside")))
        if how["mode"] == "nearest":
            x = tf.gather(x, weights.argmax(1), axis=axis)
            continue
        turned = tf.tensordot(x, build.tensor(weights.astype(x.dtype.as_numpy_dtype)), [[axis], [1]])
        x = tf.experimental.numpy.moveaxis(turned, -1, axis)
    return x


def matrix(size: int, out: int, factor: float, how: dict[str, str], a: float, exclude: bool) -> Any:
    """(out, size): what each pixel of the input counts for in each of the output.

    As ONNX's specification of Resize has it; `a` is the cubic's coefficient.
    """
    import numpy as np

    y = np.arange(out, dtype=np.float64)
    at = how["at"]
    if at == "align_corners":
        places = y * (size - 1) / (out - 1) if out > 1 else np.zeros(1)
    elif at == "asymmetric":
        places = y / factor
    elif at == "pytorch_half_pixel" and out == 1:
        places = np.zeros(1)
    elif at == "half_pixel_symmetric":
        places = (size / 2) * (1 - out / (factor * size)) + (y + 0.5) / factor - 0.5
    elif at in ("half_pixel", "pytorch_half_pixel"):
        places = (y + 0.5) / factor - 0.5
    else:
        raise Unsupported(f"coordinate_transformation_mode {at!r} is not known")
    weights = np.zeros((out, size))
    if how["mode"] == "nearest":
        kind = how["nearest"]
        if kind.startswith("round"):
            rounded = np.ceil(places - 0.5) if kind == "round_prefer_floor" else np.floor(places + 0.5)
        else:
            rounded = np.floor(places) if kind == "floor" else np.ceil(places)
        weights[np.arange(out), np.clip(rounded, 0, size - 1).astype(int)] = 1
        return weights
    reach = 2 if how["mode"] == "cubic" else 1
    for row, place in enumerate(places):
        pixels = np.arange(int(np.floor(place)) - reach + 1, int(np.floor(place)) + reach + 1)
        gap = np.abs(place - pixels)
        if how["mode"] == "linear":
            parts = np.maximum(1 - gap, 0)
        elif how["mode"] == "cubic":
            near = ((a + 2) * gap - (a + 3)) * gap * gap + 1
            far = ((a * gap - 5 * a) * gap + 8 * a) * gap - 4 * a
            parts = np.where(gap <= 1, near, np.where(gap < 2, far, 0))
        else:
            raise Unsupported(f"mode {how['mode']!r} is not known")
        if exclude:
            parts = np.where((pixels < 0) | (pixels >= size), 0, parts)
            parts = parts / parts.sum()
        np.add.at(weights[row], np.clip(pixels, 0, size - 1), parts)
    return weights
