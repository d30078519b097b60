"""Datasets: streamed, checked samples. Importing this loads nothing; its names load numpy when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optkit.data.batch import resize_feeds
    from optkit.data.dataset import Dataset, open_dataset, overlap

_HOMES = {"Dataset": "dataset", "open_dataset": "dataset", "overlap": "dataset", "resize_feeds": "batch"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


__all__ = ["Dataset", "open_dataset", "overlap", "resize_feeds"]
