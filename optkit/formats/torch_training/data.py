"""A fit set for training: shuffled batches of tensors, out of a copy on disk, so that memory does not grow with it.

One pass over the samples writes them to a folder; batches are then read from there in any order. A part is held out,
on which the training is judged: chosen by the samples' own digests, so that equal samples are on one side and their
order in the set plays no part.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.artifact import TensorSpec
from optkit.errors import DataError, StepError, did_you_mean
from optkit.formats.torch.feeds import torch_dtype
from optkit.plugin import Samples, need

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optkit.plugin import Tensors

    Array = NDArray[Any]

LABEL = "label/"
INDEX = "index.json"
POOL = 50
"""Batches' worth of shuffled samples that are sorted by size before they are cut into batches."""


@dataclass(frozen=True)
class Batch:
    """Samples to learn from.

    feeds: the model's inputs, name to tensor with axis 0 the batch. labels: likewise, by their names in the recipe, ""
        where there is one alone; empty without labels. Those that are no numbers of one shape raise DataError when they
        are asked for. rows: how many samples.
    """

    feeds: Mapping[str, Any]
    labels: Mapping[str, Any]
    rows: int


class _Labels(Mapping[str, Any]):
    """The labels of a batch, made into tensors when they are asked for: a loss may need none of them."""

    def __init__(self, data: TrainingData, numbers: Sequence[int] | NDArray[np.int64]) -> None:
        self._data, self._numbers = data, numbers

    def __getitem__(self, name: str) -> Any:
        if name not in self._data.labels:
            raise KeyError(name)
        return self._data.stacked_labels(name, self._numbers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._data.labels)

    def __len__(self) -> int:
        return len(self._data.labels)


class TrainingData:
    """The samples of a fit set in random access. train, held_out: their numbers, in the set's order.

    most: samples that a model takes at a time, where that has a limit.
    """

    def __init__(
        self, samples: Samples | None, folder: Path, inputs: Sequence[TensorSpec], *, held_out: float, seed: int,
        device: str, stack: Callable[[Sequence[Tensors]], Tensors] | None = None, share: tuple[int, int] = (0, 1),
    ) -> None:  # fmt: skip
        """Copy the samples to `folder`, unless an earlier call did. Raises DataError, OSError on a full disk.

        stack: makes a batch of samples; default the samples' own, and needed without them. share: this process's number
        from 0, and how many there are: each gets its part of the batches to learn from.
        """
        folder.mkdir(exist_ok=True)
        if samples is not None and not (folder / INDEX).is_file():
            _write(samples, folder)
        self.inputs, self.device, self.share = tuple(inputs), device, share
        self.most: int | None = None
        found = stack or (samples.stacker if samples is not None else None)
        assert found is not None
        self.stack = found
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        self._places: dict[str, list[tuple[str, list[int], int]]] = index["places"]
        self._bytes = {key: _mapped(folder / f"{number}.bin") for number, key in enumerate(self._places)}
        self._sizes = _sizes([self._places[spec.name] for spec in self.inputs], len(index["digests"]))
        self.train, self.held_out = _split(index["digests"], held_out, seed)
        self._unfit: dict[str, str] = index["unfit"]
        self.labels = tuple(key.removeprefix(LABEL) for key in self._places if key.startswith(LABEL))

    def __len__(self) -> int:
        return len(self.train) + len(self.held_out)

    def _array(self, key: str, number: int) -> Array:
        import numpy as np

        dtype, shape, start = self._places[key][number]
        size = np.dtype(dtype).itemsize * math.prod(shape)
        return np.frombuffer(self._bytes[key][start : start + size].tobytes(), dtype).reshape(shape)

    def batch(self, numbers: Sequence[int] | NDArray[np.int64]) -> Batch:
        """These samples as tensors on the device."""
        import numpy as np

        torch = need("torch")
        rows = [{s.name: self._array(s.name, int(n)) for s in self.inputs} for n in numbers]
        stacked = self.stack(rows)
        feeds = {
            spec.name: torch.from_numpy(np.array(stacked[spec.name], order="C")).to(self.device, torch_dtype(spec))
            for spec in self.inputs
        }
        return Batch(feeds, _Labels(self, numbers), len(numbers))

    def stacked_labels(self, name: str, numbers: Sequence[int] | NDArray[np.int64]) -> Any:
        """One label of these samples as a tensor on the device, `(samples, ...)`. Raises DataError."""
        import numpy as np

        if name in self._unfit:
            raise DataError(self._unfit[name], subject="data", hint="labels of numbers, all of one shape")
        arrays = [self._array(LABEL + name, int(n)) for n in numbers]
        if len({a.shape for a in arrays}) > 1 or arrays[0].dtype.kind not in "biuf":
            shown = ", ".join(sorted({f"{a.dtype} {a.shape}" for a in arrays})[:4])
            raise DataError(
                f"{f'label {name!r}' if name else 'labels'} cannot be learned from: {shown}",
                subject="data",
                hint="labels of numbers, all of one shape",
            )
        return need("torch").from_numpy(np.stack(arrays)).to(self.device)

    def label(self, name: str | None) -> str:
        """The key in `Batch.labels` that an option's name, or none, means. Raises DataError."""
        if not self.labels:
            raise DataError("the fit set has no labels", subject="data",
                            hint="name them on the dataset (label: NAME), or leave out the loss on labels")  # fmt: skip
        found = self.labels[0] if name is None and len(self.labels) == 1 else name
        if found is not None and found in self.labels:
            return found
        what = f"the fit set has no label {name!r}" if name else f"the fit set has {len(self.labels)} labels"
        raise DataError(what, subject="with", hint=did_you_mean(name or "", self.labels))

    @property
    def exactly(self) -> int | None:
        """How many samples the model takes at a time, where it does not leave that open."""
        sizes: dict[int, str] = {}
        for spec in self.inputs:
            whole = len(self._places[spec.name][0][1]) == len(spec.shape or ())
            if whole or isinstance((spec.shape or ("",))[0], int):
                sizes[1 if whole else int((spec.shape or ("",))[0])] = spec.name
        if len(sizes) > 1:
            shown = " and ".join(f"{size} ({name})" for size, name in sizes.items())
            raise DataError(f"inputs take different numbers of samples at a time: {shown}", subject="inputs",
                            hint="give every input the same batch axis")  # fmt: skip
        return next(iter(sizes), None)

    def batch_size(self, asked: int | None, default: int) -> int:
        """The batch size to train with. Raises StepError where the one asked for cannot be."""
        exactly = self.exactly
        if exactly is not None and asked not in (None, exactly):
            raise StepError(f"batches of {asked} were asked for, but the model takes exactly {exactly} at a time",
                            subject="with.batch_size", hint=f"batch_size: {exactly}, or a named batch dim in the "
                            "inputs' shape")  # fmt: skip
        if exactly is None and asked is not None and asked > len(self.train):
            raise StepError(f"batches of {asked} were asked for, but there are {len(self.train)} samples to train on",
                            subject="with.batch_size", hint=f"batch_size: {len(self.train)} or less, or more "
                            "samples")  # fmt: skip
        if exactly is None and self.most is not None and (asked or 0) > self.most:
            raise StepError(f"batches of {asked} were asked for; the source model was exported for {self.most} at most",
                            subject="with.batch_size", hint=f"batch_size: {self.most} or less, or a larger max under "
                            "dims")  # fmt: skip
        return exactly or asked or min(default, len(self.train), self.most or default)

    def order(self, size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
        """The numbers of an epoch's batches, every sample once, shuffled by seed and epoch.

        Samples of unlike size, such as sentences, are batched with others of about theirs, so that little is computed
        on padding. Where several processes share the batches, each gets equally many: the last ones may get the first
        again.
        """
        import numpy as np

        random, (number, of) = np.random.default_rng([seed, epoch]), self.share
        shuffled = random.permutation(self.train)
        if (self._sizes == self._sizes[0]).all():
            parts = _parts(shuffled, size, self.exactly)
        else:
            parts = _parts(self._by_size(shuffled, POOL * size), size, self.exactly)
            parts = [parts[place] for place in random.permutation(len(parts))]
        return [parts[place % len(parts)] for place in range(number, -(-len(parts) // of) * of, of)]

    def batches(self, size: int, *, seed: int = 0, epoch: int = 0) -> Iterator[Batch]:
        """An epoch over the samples to train on, shuffled, in batches of about `size`."""
        return (self.batch(part) for part in self.order(size, seed, epoch))

    def held_out_batches(self, size: int) -> Iterator[Batch]:
        """The samples that were held out, in the same batches every time."""
        ordered = self._by_size(self.held_out, len(self.held_out))
        return (self.batch(part) for part in _parts(ordered, size, self.exactly))

    def held_out_labelled(self, size: int) -> Iterator[tuple[Batch, list[Any] | None]]:
        """As `held_out_batches`, each with its samples' labels as the set has them; None where it has none to give."""
        ordered = self._by_size(self.held_out, len(self.held_out))
        for part in _parts(ordered, size, self.exactly):
            rows = [{name: self._array(LABEL + name, int(n)) for name in self.labels} for n in part]
            labels: list[Any] = [row[""] for row in rows] if self.labels == ("",) else list(rows)
            yield self.batch(part), labels if self.labels and not self._unfit else None

    def _by_size(self, numbers: NDArray[np.int64], pool: int) -> NDArray[np.int64]:
        """The numbers, each `pool` of them sorted by how much their inputs hold; equal ones stay in their order."""
        import numpy as np

        pools = (numbers[start : start + pool] for start in range(0, len(numbers), pool))
        return np.concatenate([part[np.argsort(self._sizes[part], kind="stable")] for part in pools])


def _sizes(places: Sequence[Sequence[tuple[str, list[int], int]]], count: int) -> NDArray[np.int64]:
    """How many values the inputs of each sample hold, `(samples,)`."""
    import numpy as np

    return np.array([sum(math.prod(of[number][1]) for of in places) for number in range(count)], np.int64)


def _mapped(path: Path) -> Array:
    import numpy as np

    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)


def _parts(numbers: NDArray[np.int64], size: int, exactly: int | None) -> list[NDArray[np.int64]]:
    """Batches as equal as can be, none larger than `size`; with `exactly`, the last is filled up from the front."""
    import numpy as np

    count = -(-len(numbers) // size)
    if exactly is None:
        return list(np.array_split(numbers, count))
    return list(np.resize(numbers, count * size).reshape(count, size))


def _split(digests: Sequence[str], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    import numpy as np

    ranked = sorted(set(digests), key=lambda digest: sha256(f"{seed} {digest}".encode()).digest())
    if len(ranked) < 2:
        raise DataError(
            f"the fit set has {len(digests)} samples, all the same" if len(digests) > 1 else "the fit set has 1 sample",
            subject="data",
            hint="two different ones at least: some are learned from, others are held out",
        )
    count = min(max(1, round(len(ranked) * share)), len(ranked) - 1)
    held = set(ranked[:count])
    numbers = np.arange(len(digests))
    mask = np.array([digest in held for digest in digests])
    return numbers[~mask], numbers[mask]


def _write(samples: Samples, folder: Path) -> None:
    """Per input and label one file of all its arrays, back to back, and the index of where each begins."""
    import numpy as np

    places: dict[str, list[tuple[str, list[int], int]]] = {}
    digests: list[str] = []
    handles: dict[str, Any] = {}
    unfit: dict[str, str] = {}
    try:
        for sample, label in samples.iter_labelled():
            named = label if isinstance(label, Mapping) else {} if label is None else {"": label}
            digest = sha256()
            for key, array in sorted(sample.items()):
                whole = np.asarray(array, order="C")
                digest.update(f"{key} {whole.dtype.str} {whole.shape} ".encode() + whole.tobytes())
            digests.append(digest.hexdigest())
            for key, value in {**sample, **{f"{LABEL}{name}": value for name, value in named.items()}}.items():
                try:
                    whole = _array_of(key, value)
                except DataError as error:
                    if not key.startswith(LABEL):
                        raise
                    unfit.setdefault(key.removeprefix(LABEL), error.what)  # whoever needs it will be told
                    whole = np.empty(0)
                if key not in handles:
                    handles[key] = (folder / f"{len(handles)}.bin").open("wb")
                    places[key] = []
                places[key].append((whole.dtype.str, list(whole.shape), handles[key].tell()))
                handles[key].write(whole.tobytes())
    finally:
        for handle in handles.values():
            handle.close()
    if not digests:
        raise DataError("the fit set has no samples", subject="data", hint="give it some")
    if any(len(of) != len(digests) for of in places.values()):
        raise DataError("some samples of the fit set have labels and some have none", subject="data",
                        hint="label all of them")  # fmt: skip
    (folder / INDEX).write_text(json.dumps({"places": places, "digests": digests, "unfit": unfit}), encoding="utf-8")


def _array_of(key: str, value: Any) -> Array:
    import numpy as np

    try:
        array = np.asarray(value, order="C")
    except ValueError as error:  # lists of unequal length
        raise DataError(f"{key.removeprefix(LABEL) or 'a label'} is no array: {error}", subject="data",
                        hint="labels of numbers, all of one shape") from error  # fmt: skip
    if array.dtype.hasobject:
        raise DataError(f"{key.removeprefix(LABEL) or 'a label'} is {type(value).__name__}, not numbers",
                        subject="data", hint="labels of numbers, all of one shape")  # fmt: skip
    return array


__all__ = ["Batch", "TrainingData"]
