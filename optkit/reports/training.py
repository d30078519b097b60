"""What a training came to, as the Markdown and the HTML report tell it: in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Data = Mapping[str, Any]


def trained(step: Data) -> str | None:
    """From what loss to what loss, on how many samples, and the metrics of these; None of a step that did not learn."""
    notes = step.get("notes") or {}
    if "held_out_loss" not in notes or "samples" not in notes:
        return None
    loss, counts = notes["held_out_loss"], notes["samples"]
    parts = [
        f"{notes['steps']} steps on {counts['learned_from']} samples; on {counts['held_out']} others the loss went "
        f"from {loss['before']:.4g} to {loss['after']:.4g}, its lowest, after epoch {notes['epochs']['best']['epoch']}"
    ]
    for name, found in (notes.get("held_out_metrics") or {}).items():
        if "problem" in found:
            parts.append(f"{name} could not be measured on these: {found['problem']}")
        else:
            parts.append(f"{name} from {_spelt(found['before'])} to {_spelt(found['after'])}, where the source model "
                         f"has {_spelt(found['source'])}")  # fmt: skip
    if "stopped" in notes:
        parts.append(f"stopped {notes['stopped']}")
    return "; ".join(parts) + "."


def _spelt(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


__all__ = ["trained"]
