"""What a pruning came to, as the Markdown and the HTML report tell it: how much is gone, of what, and what stayed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Data = Mapping[str, Any]
HEAD = ("Layer", "Channels", "With it")
LEFT_HEAD = ("Not pruned", "Why")


def pruned(step: Data) -> tuple[str, list[list[str]], list[list[str]]] | None:
    """A sentence, the rows of `HEAD` and those of `LEFT_HEAD`; None of a step that removed nothing."""
    notes = step.get("notes") or {}
    left = [[item["layer"], item["why"]] for item in notes.get("left", ())]
    if "zero_share" in notes:
        zeros = notes["zeros"]
        whole = sum(size for _, size in zeros.values())
        said = f"{notes['zero_share']:.1%} of {whole:,} weights are zero, in {len(zeros)} layers."
        return said, [[name, f"{zero:,} of {size:,} weights", ""] for name, (zero, size) in zeros.items()], left
    if "layers" not in notes or "macs" not in notes:
        return None
    rows = [
        [item["layer"], f"{item['channels'][0]} to {item['channels'][1]}" if item["channels"][0] != item["channels"][1]
         else f"{item['channels'][0]}, all kept", ", ".join(item["with"])]
        for item in notes["layers"]
    ]  # fmt: skip
    return _said(step, notes), rows, left


def _said(step: Data, notes: Data) -> str:
    parts = [
        f"{1 - notes[key]['after'] / max(1, notes[key]['before']):.1%} of the {word} are gone "
        f"({notes[key]['before']:,} to {notes[key]['after']:,})"
        for key, word in (("macs", "multiply-accumulates"), ("parameters", "parameters"))
    ]
    if found := notes.get("latency"):
        low, high = found["between"]
        parts.append(
            f"the latency on {(step.get('options') or {}).get('runtime')} is {found['latency']:.1%} ({low:.1%} to "
            f"{high:.1%}) of the unpruned model's, raced in {found['speedup']['rounds']} rounds after "
            f"{len(found['tried']) - 1} other candidates"
        )
    parts += [
        f"after round {item['after_round']} the held-out loss was {item['held_out_loss']['before']:.4g}, and after "
        f"recovery {item['held_out_loss']['after']:.4g}"
        for item in notes.get("recovered", ())
    ]
    return "; ".join(parts) + "."


__all__ = ["HEAD", "LEFT_HEAD", "pruned"]
