"""Machines that share nothing but a cache at a URL: each a process with a folder and a checkout of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toy_kit import folder, recipe

STEPS = """\
  - {id: first, use: toy.copy}
  - {id: half, from: first, use: toy.half}
  - {id: bin, from: first, to: toybin}
"""


@pytest.fixture
def far(tmp_path: Path, toy_plugin: Path) -> Path:
    return tmp_path / "far"


def start(base: Path, far: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
    """`optkit convert` on the machine whose folder is `base`."""
    if not base.exists():
        recipe(folder(base), STEPS)
    environment = {**os.environ, "OPTKIT_CACHE": str(base / "cache"), "OPTKIT_CACHE_REMOTE": f"file://{far}", **env}
    command = [sys.executable, "-m", "optkit", "convert", "recipe.yaml", "--out", "out", "--json", *arguments]
    return subprocess.Popen(command, cwd=base, env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)  # fmt: skip


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[dict[str, Any], str]:
    """The report, and what was said."""
    out, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    return json.loads(out or "{}"), said


def ran(report: dict[str, Any]) -> list[str]:
    """The steps whose pass or check was not in a cache."""
    return [s["id"] for s in report["steps"] if not (s["cached"]["run"] and s["cached"]["check"])]


def archives(far: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in far.rglob("*.zip")}


def test_two_at_once_a_third_that_runs_nothing_and_one_that_meets_damage(far: Path, tmp_path: Path) -> None:
    both = [start(tmp_path / name, far) for name in ("one", "two")]
    for process in both:
        ended(process)
    held = archives(far)
    assert {p.name for p in far.rglob("*") if p.is_file()} == {*held, "optkit-cache.json"}
    report, said = ended(start(tmp_path / "three", far))
    assert ran(report) == []
    assert f"file://{far}: {len(held)} fetched" in said
    assert ", 0 uploaded" in said
    assert archives(far) == held
    for step in ("half", "bin"):
        made = [{p.name: p.read_bytes() for p in (tmp_path / name / "out" / step).iterdir() if p.suffix != ".json"}
                for name in ("one", "three")]  # fmt: skip
        assert made[0] == made[1]
        assert made[0]
    (fresh := folder(tmp_path / "four")).joinpath("cache").mkdir()
    recipe(fresh, STEPS)
    plan = [sys.executable, "-m", "optkit", "plan", "recipe.yaml", "--cache", f"file://{far}"]
    env = {**os.environ, "OPTKIT_CACHE": str(fresh / "cache")}
    drawn = subprocess.run(plan, cwd=fresh, env=env, capture_output=True, text=True, check=True).stdout
    assert f"3 to run or to fetch from file://{far}" in drawn

    for path in far.rglob("*.zip"):
        path.write_bytes(path.read_bytes()[:-20])
    report, said = ended(start(tmp_path / "five", far, "--set=steps.half.use=crashy.raises"), 3)
    assert ran(report) == ["first", "half", "bin"]
    assert "is damaged and not used: it is cut short" in said
    replaced = {name for name, was in archives(far).items() if was == held.get(name)}
    assert 0 < len(replaced) < len(held), "all but what is only of `half`, which failed"
    assert archives(far).keys() == held.keys(), "a failure is not shared"


def test_one_that_cannot_be_reached_is_no_quiet_miss(tmp_path: Path, toy_plugin: Path) -> None:
    _, said = ended(start(tmp_path / "one", Path("/proc/cache")), 4)
    assert "the remote cache file:///proc/cache cannot be read and written" in said
    assert "OPK-409" in said
    assert not (tmp_path / "one/out").exists(), "before any work"
