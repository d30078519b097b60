"""Whether a sample is what the model takes: names, dtype, rank, shape, finite values, declared range."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optkit.artifact import Dim, TensorSpec
from optkit.data.source import Array, Sample, fault
from optkit.errors import DataError, did_you_mean
from optkit.feeds import layout_hint, shown

RANGE_SLACK = 1e-3
"""Part of its width by which a float range may be left: ranges are written with three or four digits."""


def check_inputs(name: str, inputs: Sequence[TensorSpec]) -> None:
    """Raises DataError for an input that no numpy array can feed."""
    for spec in inputs:
        if spec.shape is None:
            raise fault(
                name,
                f"the shape of input {spec.name!r} is unknown, so samples can't be fitted to it",
                f"declare it: inputs: {{{spec.name}: {{shape: [batch, ...]}}}}",
            )
        if spec.dtype in ("bfloat16", "int4", "uint4", "string"):
            raise fault(
                name,
                f"input {spec.name!r} takes {spec.dtype}, which numpy has no type for",
                "declare the input as float32 or int8 and cast inside the model",
            )


def check_names(name: str, found: Iterable[str], inputs: Sequence[TensorSpec], where: str, *, label: str | None = None,
                ignore: Sequence[str] = (), lack_hint: str = "give one array per model input, named as the input",
                extra_hint: str = "return only what the model takes") -> None:  # fmt: skip
    """Raises DataError when `found` is not the inputs, the label and what is to be ignored, each once."""
    present, wanted = set(found), [spec.name for spec in inputs]
    spare = sorted(present - set(wanted) - {label, *ignore})
    for key in wanted:
        if key not in present:
            raise fault(
                name,
                f"{where} lacks input {key!r}; it has {', '.join(sorted(present)) or 'nothing'}",
                did_you_mean(key, spare, listing=False) or lack_hint,
            )
    if label is not None and label not in present:
        raise fault(name, f"{where} has no label {label!r}", did_you_mean(label, spare) or "drop label:")
    if label in wanted:
        raise fault(name, f"label {label!r} is an input of the model", "a label is not fed; drop label:")
    for key in ignore:
        if key not in present:
            raise fault(name, f"{where} has no {key!r} to ignore", did_you_mean(key, present))
    if spare:
        raise fault(name, f"{where} has {', '.join(map(repr, spare))}, neither an input nor the label", extra_hint)


@dataclass(frozen=True)
class Checker:
    """Checks samples one by one; what it returns fits the model's inputs, in their order.

    stacked: per input, whether axis 0 is the sample axis (the sample's rank is one less than the input's) or the
        sample is fed as it is (equal rank). The first sample decides, all others must agree.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    dims: Mapping[str, Dim]
    stacked: dict[str, bool] = field(default_factory=dict)

    def __call__(self, index: int, sample: Mapping[str, Any]) -> Sample:
        """The sample's arrays in native byte order. Raises DataError naming sample, input, expected and found."""
        fitted: Sample = {}
        sizes: dict[str, tuple[int, str]] = {}
        for spec in self.inputs:
            array = sample[spec.name]
            self._dtype(index, spec, array)
            self._shape(index, spec, array, sizes)
            self._values(index, spec, array)
            fitted[spec.name] = np.asarray(array).astype(array.dtype.newbyteorder("="), copy=False)
        return fitted

    def _fault(self, index: int, spec: TensorSpec, what: str, hint: str) -> DataError:
        return fault(self.name, f"sample {index}, input {spec.name!r}: {what}", hint)

    def _dtype(self, index: int, spec: TensorSpec, array: Any) -> None:
        if not isinstance(array, np.ndarray | np.generic):
            raise self._fault(
                index,
                spec,
                f"expected a numpy array of {spec.dtype}, found {type(array).__module__}.{type(array).__name__}",
                "convert it with numpy.asarray",
            )
        if array.dtype.newbyteorder("=") == np.dtype(spec.dtype):
            return
        what = f"expected {spec.dtype}, found {array.dtype.name}"
        if array.dtype.name == "uint8" and spec.dtype.startswith("float"):
            raise self._fault(
                index,
                spec,
                f"{what}: these look like raw pixels, 0 to 255. A cast alone would feed a "
                "model trained on 0 to 1 values 255 times too large",
                "prepare them as in training, such as (image.astype('float32') / 255 - mean) / std",
            )
        raise self._fault(index, spec, what, f"cast it when you save it: array.astype('{spec.dtype}')")

    def _shape(self, index: int, spec: TensorSpec, array: Array, sizes: dict[str, tuple[int, str]]) -> None:
        shape = spec.shape or ()
        stacked = self.stacked.get(spec.name, array.ndim == len(shape) - 1)
        expected = shape[1:] if stacked else shape
        if array.ndim != len(expected):
            also = f", or {shown(shape[1:])} without the batch axis" if spec.name not in self.stacked and shape else ""
            raise self._fault(
                index,
                spec,
                f"expected shape {shown(expected)}{also}, found {shown(array.shape)}",
                "a sample has the input's axes without the first, the batch"
                if spec.name not in self.stacked
                else "every sample needs the same number of axes",
            )
        for axis, (want, have) in enumerate(zip(expected, array.shape, strict=True)):
            if isinstance(want, int):
                if want != have:
                    raise self._fault(
                        index,
                        spec,
                        f"expected shape {shown(expected)}, found {shown(array.shape)}",
                        layout_hint(expected, array.shape, spec.layout, batched=not stacked)
                        or f"axis {axis} is fixed at {want}; only named dims may vary",
                    )
                continue
            dim = self.dims.get(want)
            if have == 0 or (dim is not None and not dim.min <= have <= dim.max):
                span = f"{dim.min} to {dim.max}" if dim else "at least 1"
                raise self._fault(
                    index,
                    spec,
                    f"{want} is {have}, the recipe says {span}",
                    f"change dims.{want}, or cut or pad the sample (texts: max_length)",
                )
            seen = sizes.setdefault(want, (have, spec.name))
            if seen[0] != have:
                raise self._fault(
                    index,
                    spec,
                    f"{want} is {have}, but {seen[0]} in input {seen[1]!r}",
                    "one named dim has one size within a sample",
                )
        self.stacked.setdefault(spec.name, stacked)

    def _values(self, index: int, spec: TensorSpec, array: Array) -> None:
        floating = np.issubdtype(array.dtype, np.floating)
        if floating and not np.isfinite(array).all():
            kind = "NaN" if np.isnan(array).any() else "infinity"
            raise self._fault(
                index,
                spec,
                f"{int((~np.isfinite(array)).sum())} of {array.size} values are not finite ({kind})",
                "remove or repair the sample",
            )
        if spec.range is None or array.dtype == np.bool_:
            return
        low, high = spec.range
        slack = RANGE_SLACK * (high - low) if floating else 0
        found = array.min().item(), array.max().item()
        if found[0] < low - slack or found[1] > high + slack:
            raise self._fault(
                index,
                spec,
                f"values from {found[0]:.6g} to {found[1]:.6g} leave the declared range {low:g} to {high:g}",
                "normalise the data as in training, or correct the input's range",
            )
