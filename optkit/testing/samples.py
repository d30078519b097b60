"""Samples from a list, for a pass that needs data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optkit.plugin import Tensors


@dataclass(frozen=True)
class ListSamples:
    """A `Samples` over a short list of input name to array without the batch axis. labels: one per item, or None."""

    items: Sequence[Tensors]
    labels: Sequence[Any] | None = None

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.labels is not None

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Tensors]:
        return iter(self.items)

    def feeds(self, batch: int) -> Iterator[Tensors]:
        """Up to `batch` equally shaped samples stacked along axis 0."""
        for start in range(0, len(self.items), batch):
            yield self.stack(self.items[start : start + batch])

    def iter_labelled(self) -> Iterator[tuple[Tensors, Any]]:
        """Each item with its label."""
        return zip(self.items, self.labels or [None] * len(self.items), strict=True)

    def stack(self, samples: Sequence[Tensors]) -> Tensors:
        """Equally shaped items along axis 0."""
        return _stacked(samples)

    @property
    def stacker(self) -> Callable[[Sequence[Tensors]], Tensors]:
        """What `stack` does, as a function that can be pickled."""
        return _stacked


def _stacked(samples: Sequence[Tensors]) -> Tensors:
    import numpy as np

    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
