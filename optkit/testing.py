"""The kit plugin authors and optkit's own tests use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optkit.plugin import Tensors


@dataclass(frozen=True)
class ListSamples:
    """A `Samples` over a short list: each item maps input name to array without the batch axis."""

    items: Sequence[Tensors]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Tensors]:
        return iter(self.items)

    def feeds(self, batch: int) -> Iterator[Tensors]:
        """Up to `batch` equally shaped samples stacked along axis 0."""
        import numpy as np

        for start in range(0, len(self.items), batch):
            part = self.items[start : start + batch]
            yield {name: np.stack([item[name] for item in part]) for name in part[0]}
