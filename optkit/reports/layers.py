"""The layer that made a check fail, as every form of the report tells it: in a line, and drawn layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optkit.parity.bounds import EQUAL_DB

Data = Mapping[str, Any]

SHOWN = 40
"""About as many layers are drawn."""

FULL_DB = 100.0
"""SQNR of a full bar: float32 rounding has more."""

_DROPS = 5
_NEXT = 3  # layers named after the worst
_BAR = 24  # characters of a full bar
_STANDS_OUT = 0.3  # of the error at the outputs: a layer that makes less of it alone does not stand out


def told(step: Data) -> str:
    """The layer to blame in one line, or why none is named; "" where it was not looked for."""
    found = step.get("blame")
    if not found:
        return ""
    return f"no layer named: {found['problem']}" if found["problem"] else str(found["text"])


def named(layer: Data) -> str:
    """A layer for people: "encoder.layer.0 (Conv node_Conv_3)", or its operator and node alone."""
    what = f"{layer['operator']} {layer['node']}"
    if layer["module"] == layer["node"]:
        return f"{layer['module']} ({layer['operator']})"
    return f"{layer['module']} ({what})" if layer["module"] else what


def decibels(value: float | None) -> str:
    """Decibels for people: "31.2 dB", "exact" where nothing differs, "lost" where nothing of it is left."""
    if value is None:
        return "-"
    return "exact" if value >= EQUAL_DB else "lost" if value <= -EQUAL_DB else f"{value:.1f} dB"


def share(found: Data) -> float | None:
    """The part of the error at the outputs that the blamed layer makes alone, where that was measured."""
    layer = found["blamed"]
    if layer is None or layer["alone_db"] is None or found["output_db"] is None:
        return None
    return min(1.0, float(10 ** ((found["output_db"] - layer["alone_db"]) / 10)))


def sentence(found: Data) -> str:
    """What a search found, in one line."""
    layer, other = found["blamed"], found["against"]
    if layer is None:
        if found["nonfinite"]:
            return f"no tensor that {other} has too shows where the NaN or infinity begins"
        if found["output_db"] is not None and found["output_db"] >= 90:
            near = decibels(found["output_db"])
            return (
                f"no layer is to blame: tensor by tensor it answers as {other} does (outputs {near}), so the loss is "
                "older, or lies in how its runtime runs it as a whole"
            )
        return f"no layer stands out among {found['compared']} tensors compared with {other}"
    if layer["nonfinite"]:
        return f"the first NaN or infinity comes out of {named(layer)}; {other} is finite there"
    at = f"{decibels(layer['before_db'])} before it, {decibels(layer['after_db'])} after it, beside {other}"
    if layer.get("fused"):
        alone = decibels(layer["local_db"])
        return (
            f"the error comes from how the runtime computes {named(layer)} together with its neighbours: {at}; by "
            f"itself, on the same tensors, it is {alone}"
        )
    part = share(found)
    if part is None:
        return f"the error jumps at {named(layer)}: {at}"
    alone = f"its own error alone leaves the outputs at {decibels(layer['alone_db'])}, all together at " + (
        decibels(found["output_db"]))  # fmt: skip
    if part < _STANDS_OUT:
        return f"no layer stands out; the worst is {named(layer)}: {at}; {alone}"
    return f"the error comes from {named(layer)}: {at}; {alone}"


def culprit(step: Data) -> Data | None:
    """The layer that a step's error comes from; None where none is known or none stands out."""
    found = step.get("blame") or {}
    layer: Data | None = found.get("blamed")
    alone = share(found) if layer else None
    if layer is not None and layer.get("fused"):
        return None
    return layer if alone is None or alone >= _STANDS_OUT else None


def others(step: Data) -> str:
    """The layers that come next after the worst, with the error that each makes; "" where there are none."""
    found = step.get("blame") or {}
    rows = [found["layers"][i] for i in found.get("worst", ())]
    rows = [layer for layer in rows if not is_blamed(layer, found)][:_NEXT]
    told = [f"{named(layer)} {decibels(layer['alone_db'])} alone" if layer["alone_db"] is not None
            else f"{named(layer)} {own(layer)} of its own" for layer in rows]  # fmt: skip
    return f"next: {'; '.join(told)}" if told and found.get("blamed") else ""


def part(layer: Data) -> float:
    """The length of a layer's bar, 0 to 1, by the SQNR after it."""
    return 0.0 if layer["nonfinite"] else max(0.0, min(1.0, layer["after_db"] / FULL_DB))


def is_blamed(layer: Data, found: Data) -> bool:
    """Whether a layer is the one to blame."""
    return found["blamed"] is not None and layer["tensor"] == found["blamed"]["tensor"]


def shown(found: Data) -> list[Data]:
    """The layers to draw, in order: all, or of many the worst, the steepest falls, the ends, and some in between."""
    layers = list(found["layers"])
    if len(layers) <= SHOWN:
        return layers
    blamed = [i for i, layer in enumerate(layers) if is_blamed(layer, found)]
    drops = sorted(range(len(layers)), key=lambda i: layers[i]["after_db"] - layers[i]["before_db"])[:_DROPS]
    near = {i + k for i in [*blamed, *found["worst"]] for k in (-1, 0, 1)} | {0, len(layers) - 1, *drops}
    near = {i for i in near if 0 <= i < len(layers)}
    step = max(1, len(layers) // max(1, SHOWN - len(near)))
    return [layer for i, layer in enumerate(layers) if i in near or i % step == 0]


def own(layer: Data) -> str:
    """The error that a layer makes itself, as text; "~" where it is an estimate."""
    if layer["local_db"] is None:
        return "-"
    return ("~" if layer["estimated"] and layer["local_db"] < EQUAL_DB else "") + decibels(layer["local_db"])


def drawn(found: Data) -> list[str]:
    """A line for each layer: a bar of the SQNR after it, the figures, its name; the blamed one is marked."""
    rows = shown(found)
    if not rows:
        return []
    lines = [f"  {'SQNR':<{_BAR}} {'after it':>9} {'its own':>10} {'alone':>9}  layer"]
    for layer in rows:
        bar = "#" * (0 if part(layer) == 0 else max(1, round(_BAR * part(layer))))
        after = "NaN, inf" if layer["nonfinite"] else decibels(layer["after_db"])
        mark = ">" if is_blamed(layer, found) else " "
        lines.append(f"{mark} {bar:<{_BAR}} {after:>9} {own(layer):>10} {decibels(layer['alone_db']):>9}  "
                     f"{named(layer)}")  # fmt: skip
    return lines


def remarks(found: Data) -> Sequence[str]:
    """What else there is to say: how much was compared, and what could not be."""
    if found["problem"]:
        return ()
    where = f"sample {', '.join(map(str, found['samples']))}" if found["case"] == "samples" else found["case"]
    hidden = len(found["layers"]) - len(shown(found))
    return (
        f"{found['compared']} of {found['tensors']} inner tensors compared with {found['against']} on {where}"
        + (f"; {hidden} of them not drawn" if hidden else ""), *found["notes"],
    )  # fmt: skip
