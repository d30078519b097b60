"""Recipes over the toy plug-in's models: small enough to run a whole graph in a second, and no backend is needed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optkit.cache import Cache
from optkit.events import Event
from optkit.execute import execute
from optkit.planning import make_plan
from optkit.recipe import load_recipe
from optkit.report import Report

HEAD = """\
version: 1
name: toy
model: {file: m.toy}
dims: {batch: {min: 1, opt: 4, max: 8}}
data:
  fit: {npz: fit.npz}
  judge: {npz: judge.npz}
check_on: judge
speed: false
steps:
"""


def model(base: Path, **changes: Any) -> Path:
    """A 3 to 4 linear model in `base`/m.toy."""
    weights = np.random.default_rng(0).standard_normal((4, 3)).round(4).tolist()
    put, got = (
        {"name": n, "dtype": "float32", "shape": ["batch", size]} for n, size in (("x", 3), ("y", len(weights)))
    )
    path = base / "m.toy"
    path.write_text(json.dumps({"weights": weights, "input": put, "output": got, **changes}), encoding="utf-8")
    return path


def folder(base: Path) -> Path:
    """`base` with a model, 12 samples to fit on and 10 others to judge on."""
    base.mkdir(exist_ok=True)
    model(base)
    x = np.random.default_rng(1).standard_normal((22, 3)).astype(np.float32)
    np.savez(base / "fit.npz", x=x[:12])
    np.savez(base / "judge.npz", x=x[12:])
    for path in base.iterdir():
        os.utime(path, (time.time() - 60,) * 2)  # old enough for its digest to be remembered
    return base


def recipe(base: Path, steps: str, head: str = HEAD) -> Path:
    path = base / "recipe.yaml"
    path.write_text(head + steps, encoding="utf-8")
    return path


def convert(
    base: Path,
    steps: str,
    *,
    head: str = HEAD,
    sets: Sequence[str] = (),
    only: Sequence[str] = (),
    jobs: int = 2,
    listen: Callable[[Event], None] = lambda event: None,
) -> Report:
    """Run a recipe: cache in `base`/cache, deliveries in `base`/out."""
    plan = make_plan(load_recipe(recipe(base, steps, head), sets))
    plan = plan.only(only) if only else plan
    return execute(plan, out=base / "out", cache=Cache(base / "cache"), jobs=jobs, listen=listen)


def statuses(report: Report) -> dict[str, str]:
    return {step["id"]: step["status"] for step in report.steps}


def workers_started(base: Path) -> int:
    """How many child processes the last run started."""
    return len(list((base / "out/logs").glob("worker-*.log")))


def cached(report: Report) -> dict[str, tuple[bool, bool]]:
    return {step["id"]: (step["cached"]["run"], step["cached"]["check"]) for step in report.steps}


def wrong(step: Mapping[str, Any]) -> list[str]:
    """Why a step's check did not hold."""
    texts = [v["text"] for c in step["check"]["cases"] for v in c["verdicts"] if not v["held"]]
    return texts + [p["text"] for c in step["check"]["cases"] for p in c["source"]["problems"]]


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def eventually(test: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not test():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def all_gone(pids: Iterable[int], seconds: float = 3.0) -> bool:
    return eventually(lambda: not any(alive(pid) for pid in pids), seconds)


GRAPH = """\
  - {id: a, use: toy.copy}
  - {id: bin, from: a, to: toybin}
  - {id: half, from: a, use: toy.half}
  - {id: round, from: a, use: toy.round, data: fit, check: ["cosine >= 0.999"]}
  - {id: pack, from: bin, to: toypack}
"""

LEAVES = ("half", "round", "pack")
