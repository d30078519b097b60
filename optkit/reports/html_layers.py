"""The layers of a step whose check failed, drawn one under the other: how much of each is left beside its parent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optkit.reports.html_kit import bar, table
from optkit.reports.layers import decibels, is_blamed, named, own, part, remarks, shown
from optkit.reports.markup import Safe, join, tag

Data = Mapping[str, Any]

HEAD = ("Layer", "SQNR along the layers", "After it", "Its own error", "Outputs with that alone")


def layers(step: Data) -> Safe | None:
    """A bar for each layer in the order of execution, the blamed one marked; None where none was looked into."""
    found = step.get("blame")
    if not found or not found["layers"]:
        return None
    rows: list[list[object]] = []
    for layer in shown(found):
        guilty = is_blamed(layer, found)
        after = "NaN or infinity" if layer["nonfinite"] else decibels(layer["after_db"])
        name = join(["▶ " if guilty else None, layer["module"] or layer["node"],
                     tag("span", f"{layer['operator']} {layer['node']}", class_="under")])  # fmt: skip
        rows.append([
            tag("span", name, class_="bad") if guilty else name,
            bar(part(layer), f"{named(layer)}: {after} after it", over=guilty or layer["nonfinite"]),
            after, own(layer), decibels(layer["alone_db"]),
        ])  # fmt: skip
    said = "; ".join(remarks(found))
    key = "A shorter bar is a larger error; a layer's own error is what it makes of its parent's tensors."
    return join([tag("p", f"{said}. {key}", class_="dim"), table(HEAD, rows)])
