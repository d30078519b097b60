"""What of a run can be held against another run: each step's figures, and the conditions they were measured under."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from optkit.parity.bounds import EQUAL_DB
from optkit.reports.rows import cases, scores, worst

Data = Mapping[str, Any]


def figures_of(report: Data, steps: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """The figures of a report's steps, by id: status, format, size_bytes, sqnr_db, mismatch, scores, speed.

    speed: by what it was raced against, {"ratio", "latency_ms", "sizes", "threads"}. Figures that were not measured are
    not there. steps: which; default: all.
    """
    wanted = None if steps is None else set(steps)
    return {s["id"]: _of(s) for s in report["steps"] if wanted is None or s["id"] in wanted}


def _of(step: Data) -> dict[str, Any]:
    case = next((c for c in cases(step) if c.get("kind") == "samples"), {})
    measured = worst(case.get("source") or {})
    raced = [speed for speed in (step.get("speed"), step.get("source_speed")) if speed]
    found: dict[str, Any] = {
        "status": step["status"],
        "format": step["target"],
        "size_bytes": (step.get("artifact") or {}).get("size_bytes"),
        "sqnr_db": measured.get("sqnr_db"),
        "mismatch": measured.get("mismatch"),
        "scores": {name: dict(score) for name, score in scores(step).items() if "problem" not in score},
        "speed": {speed["against"]: {key: speed[key] for key in ("ratio", "latency_ms", "sizes", "threads")}
                  for speed in raced},
    }  # fmt: skip
    return {key: value for key, value in found.items() if value not in (None, {})}


def conditions(report: Data) -> dict[str, Any]:
    """What decides a run's figures, by what one would call it: recipe, model, data, hardware, tools."""
    env = report["environment"]
    return {
        "recipe": report["recipe"]["digest"],
        "model": report["source"]["digest"],
        "data": {name: info["digest"] for name, info in report["data"].items()},
        "hardware": {key: env.get(key) for key in ("machine", "cpu", "cores")},
        "tools": {"optkit": env["optkit"], "python": env["python"], **env["tools"]},
    }


def contract(report: Data) -> dict[str, Any]:
    """What must be the same for figures to mean the same: the model's inputs and outputs, and the judging samples."""
    signature = report["source"]["signature"] or {"inputs": [], "outputs": []}
    named = {step["check"]["data"] for step in report["steps"] if step.get("check")}
    return {
        **{kind: {t["name"]: f"{t['dtype']}[{_shape(t['shape'])}]" for t in signature[kind]}
           for kind in ("inputs", "outputs")},
        "judging data": {name: info["digest"] for name, info in report["data"].items() if name in named},
    }  # fmt: skip


def _shape(shape: list[Any] | None) -> str:
    return "?" if shape is None else ", ".join(map(str, shape))


def stands(step: Data) -> bool:
    """Whether a delivery is proven, waived, or meant to be proven on its target."""
    return step["status"] in ("passed", "waived") or (step["status"] == "deferred" and bool(step.get("on_target")))


_FIGURES = {"size": "size_bytes", "sqnr_db": "sqnr_db", "metric": "scores", "speed": "speed", "latency": "speed"}


def has_figure(baseline: Data, tolerance: str) -> bool:
    """Whether any delivery of a baseline has what a tolerance of that name is on."""
    names = {_FIGURES[tolerance], *(["mismatch"] if tolerance == "metric" else [])}
    return any(names & set(figures) for figures in baseline["deliveries"].values())


def noise_of(report: Data) -> float | None:
    """The source's own rounding error on real samples, the largest relative L2 of its outputs; None if unmeasured."""
    levels = ((report["source"].get("noise") or {}).get("samples") or {}).values()
    return max(levels, default=None)


def changes(before: Data, now: Data) -> list[str]:
    """What of the conditions is not the same, one line each: "onnxruntime 1.31.0 -> 1.32.0"."""
    found = []
    for name, what in (("recipe", "the recipe"), ("model", "the model, its weights or the code that builds it,")):
        if before[name] != now[name]:
            found.append(f"{what} changed")
    found += [f"the data {name} changed" for name in _names(before["data"], now["data"])
              if before["data"].get(name) != now["data"].get(name)]  # fmt: skip
    for group in ("hardware", "tools"):
        for name in _names(before[group], now[group]):
            old, new = before[group].get(name), now[group].get(name)
            if old != new:
                found.append(f"{name} {old if old is not None else 'none'} -> {new if new is not None else 'none'}")
    return found


def _names(one: Data, other: Data) -> Iterator[str]:
    yield from dict.fromkeys([*one, *other])


def error_of(sqnr_db: float) -> float:
    """The relative L2 error that an SQNR is; 0 for none."""
    return 0.0 if sqnr_db >= EQUAL_DB else float(10 ** (-sqnr_db / 20))
