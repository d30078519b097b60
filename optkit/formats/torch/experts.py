"""Mixtures of experts in a form that exporters take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def batched_experts(module: Any) -> Iterator[None]:
    """Experts of Hugging Face models as batched matrix products meanwhile, in place of the fused grouped kernel.

    Both give the same numbers up to rounding; the grouped one is an operator that no runtime translates. transformers
    picks among them by a setting of the config (`experts_implementation`), which is put back afterwards.
    """
    configs = {id(part.config): part.config for part in module.modules() if hasattr(part, "config")}
    grouped = [c for c in configs.values() if getattr(c, "_experts_implementation", None) == "grouped_mm"]
    for config in grouped:
        config._experts_implementation = "batched_mm"
    try:
        yield
    finally:
        for config in grouped:
            config._experts_implementation = "grouped_mm"
