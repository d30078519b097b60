"""Samples a program holds in memory put at rest, so that child processes can read them: arrays, tensors, iterables."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.artifact import TensorSpec, digest_file, digest_of
from optkit.cache import Cache
from optkit.drafting.shorthand import LABELS, data_section
from optkit.errors import DataError
from optkit.spec.dataspec import KINDS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

Data = str | Path | Mapping[str, Any] | Iterable[Any]
"""A file as the command line names one, a recipe's dataset entry, arrays by input name (axis 0 counts samples), or an
iterable of samples or of batches of them."""

_ARRAYS, _READER = "samples.npz", "samples.py"
_CODE = '''"""The samples that a program handed to optkit, one array per file in the archive, named NUMBER/INPUT."""

from pathlib import Path

import numpy as np


def samples():
    with np.load(Path(__file__).with_name("samples.npz"), allow_pickle=False) as kept:
        sample, at = {}, "0"
        for member in kept.files:
            number, _, name = member.partition("/")
            if number != at:
                yield sample
                sample, at = {}, number
            sample[name] = kept[member]
        yield sample
'''


def dataset_entry(
    data: Data | None,
    name: str,
    store: Cache,
    model: Mapping[str, Any],
    inputs: Callable[[], Sequence[TensorSpec]],
) -> dict[str, Any]:
    """The entry under a recipe's `data:` that stands for what a program gave; None is 32 random samples.

    What is in memory is kept in the cache, where it is found again by its content. model: the recipe's section, for
    texts. inputs: the model's, asked for where samples come without names or in batches.

    An array called "label" or "labels" that is no input holds the labels. Of an iterable, an item is a sample (arrays
    by input name, without the batch axis) or a batch of them (with it), as a DataLoader gives; a tuple stands for the
    inputs in order, with the label after them; an array alone for the only input. Tensors of torch are taken as they
    are, from any device. Raises DataError (subject `data.<name>`) for anything else.
    """
    if data is None or isinstance(data, str | Path):
        return data_section(None if data is None else str(data), model)
    if isinstance(data, Mapping):
        kinds = [kind for kind in KINDS if isinstance(data.get(kind), str | Path | int)]
        if kinds:
            return dict(data)
        if not data:
            raise _fault(name, "it is empty", "give arrays by input name: {'image': array}")
        listed = any(not hasattr(value, "dtype") for value in data.values())
        specs = {spec.name: spec for spec in inputs()} if listed else {}
        arrays = {str(k): array_of(v, name, str(k), specs.get(str(k))) for k, v in data.items()}
        label = _label_of(arrays, [t.name for t in inputs()], name) if set(LABELS) & set(arrays) else None
        folder = store.stage()
        _write([arrays], folder / _ARRAYS, "{1}.npy")
        return {"npz": str(keep(folder, store) / _ARRAYS)} | ({"label": label} if label else {})
    if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        raise _fault(name, f"a {type(data).__name__} is no data optkit reads", _FORMS)
    folder, samples = store.stage(), _Samples(data, name, inputs)
    try:
        if not _write(samples, folder / _ARRAYS, "{0}/{1}.npy"):
            raise _fault(name, "it has no samples", "a check or a calibration without samples would prove nothing")
        (folder / _READER).write_text(_CODE, encoding="utf-8")
        kept = keep(folder, store)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    entry = {"python": f"{kept / _READER}:samples", "reads": [str(kept / _ARRAYS)]}
    return entry | ({"label": samples.label} if samples.label else {})


_FORMS = "give arrays by input name, an iterable of samples, a file, or a recipe's dataset entry"


def _fault(name: str, what: str, hint: str) -> DataError:
    return DataError(f"data.{name}: {what}", hint=hint, subject=f"data.{name}")


def array_of(value: Any, name: str, key: str, spec: TensorSpec | None = None) -> Array:
    """A value as a NumPy array: tensors of torch from any device, bfloat16 as float32; lists in the input's dtype.

    Raises DataError for what is no array of numbers.
    """
    import numpy as np

    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
    made: Any = None
    with suppress(Exception):  # whatever somebody's __array__ raises
        plain = spec is not None and not hasattr(value, "dtype") and spec.dtype in np.sctypeDict
        made = np.asarray(value, dtype=spec.dtype if plain and spec else None)
    if made is None or made.dtype.kind not in "biufc":
        what = f"{key!r} is a {type(value).__module__}.{type(value).__name__}, which is no array of numbers"
        raise _fault(name, what, "give NumPy arrays or tensors")
    return made  # type: ignore[no-any-return]


def _label_of(arrays: Mapping[str, Array], inputs: Iterable[str], name: str) -> str | None:
    """The name of the labels among a sample's arrays. Raises DataError for labels that are no class numbers."""
    found = next((n for n in LABELS if n in arrays and n not in inputs), None)
    if found is not None and arrays[found].dtype.kind not in "iu":
        what = f"{found!r} is {arrays[found].dtype}, and labels are class numbers, integers"
        raise _fault(name, what, f"leave {found!r} out: what is compared are the models' outputs")
    return found


def _write(samples: Iterable[Mapping[str, Array]], path: Path, key: str) -> int:
    """Write the arrays of each sample as `key.format(NUMBER, INPUT)`, one sample after the other. Returns how many."""
    import numpy as np

    count = 0
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for sample in samples:
            for name, array in sample.items():
                # A ZipInfo made here has a fixed date: equal samples make equal files.
                with archive.open(zipfile.ZipInfo(key.format(count, name)), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.ascontiguousarray(array).reshape(array.shape))
            count += 1
    return count


def keep(folder: Path, store: Cache) -> Path:
    """A folder's files under the digest of their content in the cache, where a later run and `optkit replay` find them.

    The folder is consumed.
    """
    digests = {path.name: digest_file(path) for path in sorted(folder.iterdir())}
    return store.put(digest_of(["live", digests]), {}, folder, digests, shared=False).folder


class _Samples:
    """Iterates over single samples, whatever form they come in. label: the key of a sample that is its label."""

    def __init__(self, data: Any, name: str, inputs: Callable[[], Sequence[TensorSpec]]) -> None:
        self.data, self.name, self.ask = data, name, inputs
        self.label: str | None = None
        self._inputs: tuple[TensorSpec, ...] | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs, asked for once they are needed."""
        if self._inputs is None:
            self._inputs = tuple(self.ask())
        return self._inputs

    def __iter__(self) -> Iterator[dict[str, Array]]:
        for index, item in enumerate(self._items()):
            sample = self._named(index, item)
            names = [spec.name for spec in self.inputs]
            self.label = _label_of(sample, names, self.name)
            if self._is_batch(sample):
                yield from self._rows(index, sample)
            else:
                yield sample

    def _items(self) -> Iterator[Any]:
        if not hasattr(self.data, "__iter__") and hasattr(self.data, "__len__"):
            # A dataset of torch's map style need not end its own iteration.
            return (self.data[index] for index in range(len(self.data)))
        return iter(self.data)

    def _named(self, index: int, item: Any) -> dict[str, Array]:
        specs = self.inputs
        by_name = {spec.name: spec for spec in specs}
        if isinstance(item, Mapping):
            values = {str(key): value for key, value in item.items()}
        elif isinstance(item, tuple | list) and len(item) in (len(specs), len(specs) + 1):
            values = dict(zip([*by_name, "label"], item, strict=False))
        elif len(specs) == 1 and hasattr(item, "shape"):
            values = {specs[0].name: item}
        else:
            size = f" of {len(item)}" if isinstance(item, tuple | list) else ""
            what = f"sample {index} is a {type(item).__name__}{size}, and the model takes {', '.join(by_name)}"
            raise _fault(self.name, what, f"give dicts: {{{next(iter(by_name), 'image')!r}: array}}")
        return {key: array_of(value, self.name, key, by_name.get(key)) for key, value in values.items()}

    def _is_batch(self, sample: Mapping[str, Array]) -> bool:
        """Whether every input comes with its batch axis, and all share that axis."""
        specs = [spec for spec in self.inputs if spec.shape and spec.name in sample]
        return (
            bool(specs)
            and len({spec.shape[0] for spec in specs if spec.shape}) == 1
            and all(sample[spec.name].ndim == len(spec.shape or ()) for spec in specs)
        )

    def _rows(self, index: int, batch: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
        counts = {key: array.shape[0] if array.ndim else None for key, array in batch.items()}
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"{key} {count if count is not None else 'none'}" for key, count in counts.items())
            raise _fault(self.name, f"batch {index}: samples along axis 0 differ: {shown}", "give each its batch axis")
        for row in range(next(iter(counts.values())) or 0):
            yield {key: array[row] for key, array in batch.items()}
