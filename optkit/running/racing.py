"""Which steps of a plan are raced against the step they come from, and what their speed and size are worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optkit.planning import Plan, Step
from optkit.recipe import SOURCE

SAME = 0.05
"""Speeds nearer than this are called the same: two processes that run one and the same file differ as much on a busy
machine."""

OVERLOADED = 0.5
"""Above this share of the time for other programs, their use of caches and memory makes one file up to 12 % slower than
itself."""

STARTS = 5
"""In how many processes, one after the other, each artifact of a race is opened and run at most: where a process lies
in memory alone makes it some percent slower or faster."""

SECONDS = 3.0
"""How long the rounds of a race go on for each artifact in it, unless they are clear before."""


def heats(plan: Plan) -> dict[str, list[Step]]:
    """The steps to race, by the id of the step they come from.

    Those that must be faster, and, unless the recipe turns it off, each lossy delivery whose parent runs on the same
    runtime. A gate on speed or latency adds a race against the source, or the parent, whatever they run on.
    """
    found: dict[str, list[Step]] = {}
    for step in plan.steps:
        parent = plan.recipe.source_format if step.parent == SOURCE else plan.step(step.parent).use.target
        usual = (
            plan.recipe.speed and step.use.fidelity == "lossy" and step.id in plan.deliver and parent == step.use.target
        )
        if "faster" in step.must or (usual and step.use.is_timed(step.options)):
            found.setdefault(step.parent, []).append(step)
        for gate, _ in plan.gates_of(step):
            against = step.parent if gate.relative == "parent" else SOURCE
            if gate.timed and step not in found.setdefault(against, []):
                found[against].append(step)
    return {against: steps for against, steps in found.items() if steps}


def speed_of(parent: str, step: str, race: Mapping[str, Any]) -> dict[str, Any]:
    """A step's speed as the report has it, out of a race's result.

    `ratio`: how many times as fast as its parent, with a 95 % interval; `verdict`: faster, slower or same.
    """
    mine, base = race["entrants"][step], race["entrants"][parent]
    ratio = mine["ratio"]
    return {
        "against": parent, "ratio": ratio, "verdict": verdict(ratio), "sizes": race["sizes"],
        "threads": race["threads"], "provider": mine["provider"], "latency_ms": mine["latency_ms"],
        "parent_latency_ms": base["latency_ms"], "peak_bytes": mine["peak_bytes"],
        "parent_peak_bytes": base["peak_bytes"],
        "samples_per_second": race["samples"] / mine["mean_ms"] * 1e3,
    }  # fmt: skip


def verdict(ratio: Mapping[str, Any]) -> str:
    """What a ratio says: faster or slower where it is by `SAME`, and its whole interval by half of that; else same.

    Where other programs had the processor most of the time it must be by twice as much.
    """
    margin = 2 * SAME if is_overloaded(ratio) else SAME
    if ratio["low"] > 1 + margin / 2 and ratio["value"] >= 1 + margin:
        return "faster"
    return "slower" if ratio["high"] < 1 - margin / 2 and ratio["value"] <= 1 - margin else "same"


def is_overloaded(ratio: Mapping[str, Any]) -> bool:
    """Whether other programs had the processor for more than `OVERLOADED` of the race."""
    return (ratio.get("taken") or 0.0) > OVERLOADED


def told(speed: Mapping[str, Any]) -> str:
    """A speed in one line: "2.31 times as fast as slim (2.25 to 2.40)"."""
    r = speed["ratio"]
    text = f"{r['value']:.2f} times as fast as {speed['against']} ({r['low']:.2f} to {r['high']:.2f})"
    return {"slower": f"slower: {text}", "same": f"no faster: {text}"}.get(speed["verdict"], text)


def musts(
    step: Step, size_bytes: int | None, parent_bytes: int | None, speed: Mapping[str, Any] | None, why: str
) -> list[dict[str, Any]]:
    """Each thing the recipe says a step must be, with whether it is and the figures.

    Sizes are None of a torch model whose weights are in no file. why: what kept it from a race.
    """
    found = []
    for word in step.must:
        if word == "smaller":
            unknown = [name for name, n in ((step.id, size_bytes), (step.parent, parent_bytes)) if n is None]
            text = f"{size_bytes} bytes, {step.parent} has {parent_bytes}"
            if unknown:
                text = f"{unknown[0]} has no file of weights whose size could be compared"
            held = size_bytes is not None and parent_bytes is not None and size_bytes < parent_bytes
            found.append({"must": word, "held": held, "text": text})
        elif speed is None:
            found.append({"must": word, "held": False, "text": why or "its speed was not measured"})
        else:
            found.append({"must": word, "held": speed["verdict"] == "faster", "text": told(speed)})
    return found
