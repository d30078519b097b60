"""Workers: whatever a backend does to its process fails its own step, by name, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_kit import alive, all_gone, cached, convert, eventually, folder, recipe, statuses

from optkit import registry
from optkit.errors import UserError
from optkit.events import Event, StepProgress
from optkit.report import Report
from optkit.running.pool import Pool, run_alone
from optkit.worker import replay

# What fails, the error's class, words of its message, words of its details.
FAILURES = [
    ("segfault", "StepCrashed", "ended by SIGSEGV (segmentation fault)", "about to touch a bad pointer"),
    ("segfault", "StepCrashed", "ended by SIGSEGV (segmentation fault)", "in segfault"),  # the Python stack
    ("sigkill", "StepCrashed", "ended by SIGKILL, most likely for want of memory", ""),
    ("quits", "StepCrashed", "ended with exit code 4 before it answered", ""),
    ("exits", "StepError", "it tried to end its process: sys.exit(3)", "crashy.py"),
    ("raises", "StepError", "RuntimeError: Unsupported: Frobnicate(x)", "second line"),
    ("raises", "StepError", "RuntimeError: Unsupported: Frobnicate(x)", "the last words of the backend"),
    ("out_of_memory", "StepError", "ran out of memory", "crashy.py"),
    ("nan_notes", "StepError", "returned something that is no JSON data", ""),
    ("array_notes", "StepError", "returned something that is no JSON data", ""),
    ("no_notes", "StepError", "crashy.no_notes returned a NoneType, not notes", ""),
    ("writes_nothing", "StepError", "returned without writing model.toy; it left debug.txt", ""),
    ("noisy", "StepCrashed", "ended with exit code 5 before it answered", "the very last line"),
    ("noisy", "StepCrashed", "ended with exit code 5 before it answered", "line 9999 on stderr"),
    ("links", "StepError", "crashy.links wrote a link, model.toy, instead of a file", ""),
    ("edits_input", "StepError", "crashy.edits_input changed its input, model.toy", ""),
    ("wrong_names", "StepError", "outputs are called z, not y", ""),
    ("wrong_dtypes", "StepError", "output y is float64, not float32", ""),
    ("static_dims", "StepError", "axis 0: the dynamic dim 'batch' came out fixed at 8", ""),
    ("unkept", "StepError", "what it wrote is not what was asked for: nothing was done (and 1 more)", "at all"),
]
FAILING = list(dict.fromkeys(name for name, *_ in FAILURES))


@pytest.fixture(scope="module")
def plugins(toy_plugin_folder: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(toy_plugin_folder)
        patch.setenv("PYTHONPATH", str(toy_plugin_folder))
        registry.passes.cache_clear()
        registry.runners.cache_clear()
        yield toy_plugin_folder
    registry.passes.cache_clear()
    registry.runners.cache_clear()


@pytest.fixture(scope="module")
def broken(plugins: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """One run in which every pass that can fail does, beside steps that go well."""
    base = folder(tmp_path_factory.mktemp("broken"))
    steps = "- {id: first, use: toy.copy}\n- {id: victim, use: toy.copy, with: {note: victim}}\n"
    for name in FAILING:
        start = "victim" if name == "edits_input" else "first"
        steps += f"- {{id: {name}, from: {start}, use: crashy.{name}}}\n"
    steps += "- {id: child, from: segfault, use: toy.copy}\n- {id: grandchild, from: child, use: toy.half}\n"
    return convert(base, steps + "- {id: last, from: first, use: toy.copy, with: {note: last}}\n")


@pytest.mark.parametrize(("name", "kind", "what", "details"), FAILURES)
def test_a_failure_has_a_name(name: str, kind: str, what: str, details: str, broken: Report) -> None:
    step = broken.step(name)
    assert step["status"] == "error"
    error = step["error"]
    assert error["class"] == kind, error
    assert what in error["what"], error
    assert details in error["details"], error
    assert error["hint"]
    assert error["phase"] == "run"
    assert f"recipe.yaml:{FAILING.index(name) + 13}" in error["where"]


def test_nothing_else_fails_with_it(broken: Report) -> None:
    others = {k: v for k, v in statuses(broken).items() if k not in FAILING}
    assert others == {
        "first": "passed",
        "victim": "passed",
        "last": "passed",
        "child": "blocked",
        "grandchild": "blocked",
    }
    assert broken.step("grandchild")["blocked_by"] == "segfault"
    assert broken.exit_code == 3
    assert Report.read(Path(broken.step("raises")["replay"]).parents[2] / "report.json").data == broken.data


def test_a_log_holds_no_other_steps_lines(broken: Report) -> None:
    """Workers are reused, logs too: each step's details hold its own part."""
    for name in FAILING:
        if name != "raises":
            assert "the last words of the backend" not in broken.step(name)["error"]["details"]


@pytest.mark.parametrize("name", ["segfault", "raises", "writes_nothing"])
def test_replay_repeats_a_failure(name: str, broken: Report, tmp_path: Path) -> None:
    step = broken.step(name)
    result = replay(Path(step["replay"]), tmp_path / "again")
    assert not result["ok"]
    for key in ("class", "what", "hint"):
        assert result["error"][key] == step["error"][key]


def test_replay_repeats_a_success_into_its_own_folder(broken: Report, tmp_path: Path) -> None:
    result = replay(Path(broken.step("last")["replay"]).parents[1] / "run-last/step.json", tmp_path / "again")
    assert result["ok"]
    assert result["notes"] == {"note": "last"}
    assert [p.name for p in (tmp_path / "again").iterdir()] == ["model.toy"]
    check = replay(Path(broken.step("last")["replay"]).parents[1] / "check-last/step.json", tmp_path / "check")
    assert check["ok"]
    assert check["cases"]


def test_replay_of_what_cannot_be_replayed(tmp_path: Path, broken: Report) -> None:
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("", encoding="utf-8")
    good = Path(broken.step("raises")["replay"])
    for source, out, what in [
        (tmp_path / "nothing.json", "new", "is no recorded step"),
        (tmp_path / "list.json", "new", "is no recorded step"),
        (good, "full", "is not empty"),
        (good, "list.json", "cannot be written to"),
    ]:
        with pytest.raises(UserError, match=what) as caught:
            replay(source, tmp_path / out)
        assert caught.value.hint


# --- time limits


@pytest.mark.parametrize("name", ["hang", "deaf"])
def test_a_step_that_hangs_is_stopped(name: str, plugins: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    steps = f"- {{id: bad, use: crashy.{name}, timeout: 1}}\n- {{id: good, use: toy.copy}}\n"
    report = convert(folder(tmp_path), steps)
    assert time.monotonic() - started < 30  # and not the 1800 s a step may take by default
    assert statuses(report) == {"bad": "error", "good": "passed"}
    error = report.step("bad")["error"]
    assert (error["class"], error["what"]) == ("StepTimeout", "ran past its limit of 1 s and was stopped")
    assert "`timeout:`" in error["hint"]
    assert list((tmp_path / "cache/staging").iterdir()) == [], "its scratch is gone too"
    assert 1 <= report.step("bad")["seconds"]["run"] < 30
    result = replay(Path(report.step("bad")["replay"]), tmp_path / "again")
    assert result["error"]["class"] == "StepTimeout"


# --- what is no failure


def test_odd_progress_is_made_plain_and_slowed_down(plugins: Path, tmp_path: Path) -> None:
    told: list[Event] = []
    report = convert(folder(tmp_path), "- {id: a, use: crashy.odd_progress}\n", listen=told.append)
    assert statuses(report) == {"a": "passed"}
    progress = [e for e in told if isinstance(e, StepProgress) and e.step == "a"]
    assert progress[0] == StepProgress("a", "odd", 0.5)
    assert len(progress) < 200
    assert all(e.fraction is None or 0 <= e.fraction <= 1 for e in progress)


def test_a_question_gets_no_answer(plugins: Path, tmp_path: Path) -> None:
    """A backend that asks on standard input neither waits for ever nor eats the next step."""
    steps = "- {id: a, use: crashy.reads_stdin}\n- {id: b, from: a, use: toy.copy}\n"
    report = convert(folder(tmp_path), steps, jobs=1)
    assert statuses(report) == {"a": "passed", "b": "passed"}
    assert report.step("a")["notes"] == {"answer": ""}


def test_a_worker_is_reused(plugins: Path, tmp_path: Path) -> None:
    steps = "".join(f"- {{id: {n}, use: crashy.sleeps, with: {{text: {tmp_path}/{n}.pid}}}}\n" for n in "abc")
    assert convert(folder(tmp_path), steps, jobs=1).exit_code == 0
    assert len({(tmp_path / f"{n}.pid").read_text(encoding="ascii") for n in "abc"}) == 1


# --- nobody is left behind


def test_what_a_dead_worker_leaves_is_ended_with_it(plugins: Path, tmp_path: Path) -> None:
    """The child holds the worker's output open: its end must be noticed all the same."""
    started = time.monotonic()
    report = convert(folder(tmp_path), f"- {{id: a, use: crashy.orphans, with: {{text: {tmp_path}/pid}}}}\n")
    assert report.step("a")["error"]["class"] == "StepCrashed"
    assert time.monotonic() - started < 30  # and not the 1800 s a step may take by default
    assert all_gone([int((tmp_path / "pid").read_text(encoding="ascii"))])


def test_what_a_pass_leaves_is_ended_with_the_run(plugins: Path, tmp_path: Path) -> None:
    report = convert(folder(tmp_path), f"- {{id: a, use: crashy.children, with: {{text: {tmp_path}/pid}}}}\n")
    assert statuses(report) == {"a": "passed"}
    assert all_gone([int((tmp_path / "pid").read_text(encoding="ascii"))])


def started_run(base: Path) -> tuple[subprocess.Popen[str], int]:
    """An `optkit convert` that is in the middle of its second step, and that step's process."""
    steps = "- {id: first, use: toy.copy}\n"
    steps += f"- {{id: slow, from: first, use: crashy.sleeps, with: {{seconds: 60, text: {base}/pid}}}}\n"
    steps += "- {id: after, from: slow, use: toy.copy}\n"
    path = recipe(folder(base), steps)
    command = [sys.executable, "-m", "optkit", "convert", str(path), "--out", str(base / "out"), "--cache",
               str(base / "cache"), "--quiet"]  # fmt: skip
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert eventually(lambda: (base / "pid").exists() and (base / "pid").stat().st_size > 0, 30)
    return run, int((base / "pid").read_text(encoding="ascii"))


def children_of(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="ascii").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


def test_an_interrupt_stops_at_once_and_keeps_what_is_finished(plugins: Path, tmp_path: Path) -> None:
    run, worker = started_run(tmp_path)
    everybody = [worker, *children_of(run.pid)]
    sent = time.monotonic()
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    _, told = run.communicate(timeout=20)
    assert time.monotonic() - sent < 2
    assert run.returncode == 130
    assert "Traceback" not in told
    assert all_gone(everybody)
    report = Report.read(tmp_path / "out/report.json")
    assert report.exit_code == 130
    assert statuses(report) == {"first": "passed", "slow": "interrupted", "after": "skipped"}
    assert list((tmp_path / "cache/staging").iterdir()) == []
    again = convert(tmp_path, "- {id: first, use: toy.copy}\n")
    assert cached(again) == {"first": (True, True)}


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.03])
def test_whoever_presses_twice_gets_a_report_too(seconds: float, plugins: Path, tmp_path: Path) -> None:
    run, worker = started_run(tmp_path)
    os.killpg(run.pid, signal.SIGINT)
    time.sleep(seconds)
    os.killpg(run.pid, signal.SIGINT)
    _, told = run.communicate(timeout=20)
    assert run.returncode in (130, -signal.SIGINT)  # after Python itself has ended, the signal's own way
    assert "Traceback" not in told
    assert "interrupted; finished steps are kept" in told
    assert Report.read(tmp_path / "out/report.json").interrupted
    assert all_gone([worker])


def test_an_interrupt_leaves_earlier_deliveries_alone(plugins: Path, tmp_path: Path) -> None:
    base = folder(tmp_path)
    convert(base, "- {id: after, use: toy.copy}\n")
    assert (base / "out/after/optkit.json").exists()
    run, _ = started_run(tmp_path)
    os.killpg(run.pid, signal.SIGINT)
    run.communicate(timeout=20)
    assert (base / "out/after/optkit.json").exists()


def test_a_killed_run_leaves_no_worker(plugins: Path, tmp_path: Path) -> None:
    run, worker = started_run(tmp_path)
    everybody = [worker, *children_of(run.pid)]
    assert alive(worker)
    run.kill()
    run.communicate(timeout=20)
    assert all_gone(everybody)
    again = convert(tmp_path, "- {id: first, use: toy.copy}\n")
    assert cached(again) == {"first": (True, True)}


# --- the pool itself


def result_of(pool: Pool, task: str) -> dict[str, Any]:
    for _ in range(200):
        message = pool.wait(0.1)
        if message is not None and message.kind == "result" and message.task == task:
            return message.data
    raise AssertionError(f"{task} never ended")


def test_an_interpreter_that_is_not_there_fails_the_task(tmp_path: Path) -> None:
    with Pool(1, tmp_path) as pool:
        pool.submit("t", {"task": "warm", "modules": []}, tmp_path / "t", 10, python="/nowhere/python")
        result = result_of(pool, "t")
        assert "the interpreter /nowhere/python cannot be started" in result["error"]["what"]
        pool.submit("u", {"task": "warm", "modules": []}, tmp_path / "u", 10, python="/bin/false")
        assert "ended with exit code 1" in result_of(pool, "u")["error"]["what"]
        pool.submit("v", {"task": "warm", "modules": []}, tmp_path / "v", 10)
        assert result_of(pool, "v")["ok"]
        assert pool.free == 1


def test_a_module_that_kills_its_importer_is_warmed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "killer_module.py").write_text("import os; os._exit(9)", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with Pool(2, tmp_path / "logs") as pool:
        pool.start()
        assert pool.cold(["killer_module", "json"]) == "killer_module"
        pool.warm("w", "killer_module", tmp_path / "w")
        assert not result_of(pool, "w")["ok"]
        pool.start()
        assert pool.cold(["killer_module", "json"]) == "json"
        pool.warm("x", "json", tmp_path / "x")
        assert result_of(pool, "x")["ok"]
        assert pool.cold(["killer_module", "json"]) is None


def test_nobody_is_idle(tmp_path: Path) -> None:
    with Pool(1, tmp_path) as pool:
        assert pool.cold(["json"]) is None
        pool.warm("w", "json", tmp_path / "w")
        assert result_of(pool, "w") == {"ok": True, "seconds": 0.0, "peak_bytes": None}


def test_a_worker_finds_what_its_parent_finds_and_passes_nothing_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text(
        "import os, sys, json, subprocess\n"
        "told = {'path': sys.path, 'env': os.environ.get('PYTHONPATH'), 'safe': os.environ.get('PYTHONSAFEPATH')}\n"
        f"open({str(tmp_path / 'told.json')!r}, 'w').write(json.dumps(told))\n",
        encoding="utf-8",
    )
    (tmp_path / "json.py").write_text("raise ImportError('a file in the working directory was imported')", "utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lib").mkdir()
    (tmp_path / "only_here.py").rename(tmp_path / "lib/only_here.py")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    result = run_alone({"task": "warm", "modules": ["only_here"]}, tmp_path / "log")
    assert result["ok"]
    told = json.loads((tmp_path / "told.json").read_text(encoding="utf-8"))
    assert told["path"][0] == str(tmp_path / "lib")
    assert str(tmp_path) not in told["path"]
    assert (told["env"], told["safe"]) == ("/mine", None)


def test_another_interpreter_gets_optkit_and_none_of_our_packages(tmp_path: Path) -> None:
    """What it cannot import is its own affair: a bare interpreter has no pydantic, and must not find ours."""
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    with Pool(1, tmp_path / "logs") as pool:
        pool.submit("t", {"task": "warm", "modules": []}, tmp_path / "t", 30, python=str(bare / "bin/python"))
        error = result_of(pool, "t")["error"]
    assert error["class"] == "UnavailableError"
    assert "lacks what optkit itself needs: No module named 'pydantic'" in error["what"]
    assert f"{bare}/bin/python -m pip install" in error["hint"]
