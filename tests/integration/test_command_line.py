"""The command line as its users meet it: on a terminal, in a log, with bad input and on bad days."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from terminal import watch
from toy_kit import HEAD, folder, recipe

from optkit.reports import DRAWN

OPTKIT = [sys.executable, "-m", "optkit"]
STEPS = """\
- {id: first, use: toy.copy}
- {id: slow, from: first, use: crashy.sleeps, with: {seconds: 1.2}}
- {id: half, from: first, use: toy.half}
"""


@pytest.fixture
def plugins(toy_plugin: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with a toy model, its data, and a cache of its own."""
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COLUMNS", raising=False)
    return folder(tmp_path / "toy")


def run(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """An optkit command line in a process of its own."""
    return subprocess.run([*OPTKIT, *arguments], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True,
                          timeout=60, check=False)  # fmt: skip


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A line of bash in which `optkit` is ours."""
    start = f'optkit() {{ {sys.executable} -m optkit "$@"; }}; set -o pipefail; '
    return subprocess.run(
        ["bash", "-c", start + line], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


def workers_below(pid: int) -> list[int]:
    """The worker processes that a process has started and that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text(encoding="ascii").rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(path.parent.name))
    return found


# ------------------------------------------------------------------------------------------------ on a terminal


def test_a_terminal_shows_each_running_step_with_its_time_and_keeps_only_what_is_done(plugins: Path) -> None:
    recipe(plugins, STEPS)
    seen = watch([*OPTKIT, "convert", "recipe.yaml", "--out", "out"], plugins)
    assert seen.code == 0, seen.screen.text
    running = [re.search(r"([\d.]+)s  slow    running crashy.sleeps", frame) for frame in seen.frames]
    times = [float(found[1]) for found in running if found]
    assert times == sorted(times)
    assert times[-1] > 0.8
    final = seen.screen.text.splitlines()
    assert re.fullmatch(r"\[ *[\d.]+s\] toy: 3 steps", final[0])
    assert [re.sub(r"[\d.]+ s$", "T", line.partition("] ")[2]) for line in final[1:4]] in (
        ["first   passed, T", "half    passed, T", "slow    passed, T"],
        ["first   passed, T", "slow    passed, T", "half    passed, T"],
    )
    assert "running" not in seen.screen.text
    assert "toy: both deliveries hold" in seen.screen.text
    assert seen.screen.cursor_shown
    assert seen.screen.wrapped == 0
    assert len(seen.raw) < 30_000  # a steady picture, not a flood
    assert max(len(line) for frame in seen.frames for line in frame.splitlines()) <= 80


@pytest.mark.parametrize("columns", [20, 40, 79])
def test_a_narrow_terminal_breaks_no_word_of_a_table(columns: int, plugins: Path) -> None:
    recipe(plugins, STEPS)
    seen = watch([*OPTKIT, "plan", "recipe.yaml"], plugins, columns)
    assert seen.code == 0
    words = seen.screen.text.split()
    assert {"toy.copy", "crashy.sleeps", "toy.half", "deliver"} <= set(words)
    if columns > 40:
        assert seen.screen.wrapped == 0


def test_no_colour_where_none_is_wanted(plugins: Path) -> None:
    recipe(plugins, STEPS)
    assert "\x1b[" in watch([*OPTKIT, "plan", "recipe.yaml"], plugins).raw
    assert "\x1b[" not in watch([*OPTKIT, "plan", "recipe.yaml"], plugins, env={"NO_COLOR": "1"}).raw
    assert "\x1b[" not in watch([*OPTKIT, "plan", "recipe.yaml"], plugins, env={"TERM": "dumb"}).raw


def test_ctrl_c_on_a_terminal(plugins: Path) -> None:
    recipe(plugins, STEPS.replace("1.2", "60"))
    seen = watch([*OPTKIT, "convert", "recipe.yaml", "--out", "out"], plugins, interrupt_at="slow    running crashy")
    assert seen.code == 130
    assert seen.seconds_after_key < 2
    assert seen.screen.cursor_shown
    assert "Traceback" not in seen.screen.text
    assert "slow    interrupted\n" in seen.screen.text
    assert "toy: interrupted" in seen.screen.text
    assert "interrupted; finished steps are kept" in seen.screen.text
    assert sorted(p.name for p in (plugins / "out").iterdir()) == sorted(["logs", "report.json", *DRAWN])
    plan = {s["id"]: s["cached"] for s in json.loads(run("plan", "recipe.yaml", "--json", cwd=plugins).stdout)["steps"]}
    assert (plan["first"], plan["slow"]) == (True, False)


def test_ctrl_c_while_optkit_starts(plugins: Path) -> None:
    recipe(plugins, STEPS)
    child = subprocess.Popen([*OPTKIT, "convert", "recipe.yaml"], cwd=plugins, stderr=subprocess.PIPE, text=True)
    time.sleep(0.25)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=20)
    assert child.returncode in (130, -signal.SIGINT)  # before Python itself is up, the signal's own way
    assert "optkit-bug" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_told_to_end_leaves_nothing_running(number: int, plugins: Path) -> None:
    recipe(plugins, STEPS.replace("1.2", "60"))
    line = [*OPTKIT, "convert", "recipe.yaml", "--out", "out"]
    with subprocess.Popen(line, cwd=plugins, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        for said in child.stderr:
            if "crashy.sleeps" in said:
                break
        workers = workers_below(child.pid)
        assert workers
        child.send_signal(number)
        _, rest = child.communicate(timeout=20)
    assert child.returncode == 130
    assert "toy: interrupted" in rest
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


# ------------------------------------------------------------------------------------------------ in a log, in a pipe


def test_a_killed_worker_fails_its_step_by_name_and_no_other(plugins: Path) -> None:
    pid_file = plugins / "pid"
    recipe(plugins, STEPS.replace("seconds: 1.2", f"seconds: 60, text: {pid_file}"))
    line = [*OPTKIT, "convert", "recipe.yaml", "--out", "out", "--jobs", "2"]
    with subprocess.Popen(line, cwd=plugins, stderr=subprocess.PIPE, text=True) as child:
        while not (pid_file.exists() and pid_file.read_text()):
            assert child.poll() is None
            time.sleep(0.02)
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
        _, said = child.communicate(timeout=30)
    assert child.returncode == 3
    assert "toy: 1 of 2 deliveries hold; error: slow" in said
    assert "slow failed in crashy.sleeps\n  at recipe.yaml:" in said
    assert "its process was ended by SIGKILL, most likely for want of memory" in said
    assert "again, alone: optkit replay out/logs/run-slow/step.json" in said
    assert (plugins / "out/half/optkit.json").is_file()
    assert not (plugins / "out/slow").exists()
    text = (plugins / "out/report.md").read_text(encoding="utf-8")
    assert text.startswith("# toy: 1 of 2 deliveries hold; error: slow\n")
    assert "### slow: error" in text.split("## Steps")[0]
    page = (plugins / "out/report.html").read_text(encoding="utf-8")
    assert "toy: 1 of 2 deliveries hold; error: slow" in page
    assert "its process was ended by SIGKILL" in page


def test_a_crash_before_the_first_step_says_what_was_going_on(plugins: Path) -> None:
    (plugins / "slow.py").write_text("import os\ndef samples():\n    os._exit(9)\n    yield {}\n", encoding="utf-8")
    recipe(plugins, STEPS, HEAD.replace("judge: {npz: judge.npz}", "judge: {python: 'slow.py:samples'}"))
    done = run("convert", "recipe.yaml", "--out", "out", cwd=plugins)
    assert done.returncode == 3
    what = done.stderr.partition("error: ")[2]
    assert re.match(r"(reading the data|running the source model): its process ended with exit code 9", what)
    assert re.search(r"try: optkit replay out/logs/(data|record)/step.json", what)


def test_readers_that_go_away(plugins: Path) -> None:
    recipe(plugins, STEPS.replace("1.2", "0"))
    gone = shell("optkit plan recipe.yaml | true", plugins)
    assert (gone.returncode, gone.stderr) == (141, "")
    assert shell("optkit passes 2>&1 >/dev/full", plugins).returncode == 4
    full = shell("optkit plan recipe.yaml >/dev/full", plugins)
    assert full.returncode == 4
    assert full.stderr.startswith("error: no space left on device")
    assert shell("optkit plan recipe.yaml >&-", plugins).returncode == 0
    for lost in ("2>/dev/full", "2>&-", "2> >(true)"):  # nobody reads the progress: no reason to stop the run
        assert shell(f"optkit convert recipe.yaml --out out {lost}", plugins).returncode == 0
        assert (plugins / "out/report.md").is_file()
        (plugins / "out/report.md").unlink()
    assert shell("optkit convert nothing.yaml 2>/dev/full", plugins).returncode == 2


def test_a_terminal_without_unicode_and_names_with_it(plugins: Path) -> None:
    odd = plugins / "möd els 日本"
    folder(odd)
    path = recipe(odd, STEPS.replace("1.2", "0")).rename(odd / "ré cipe.yaml")
    plain = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    plan = run("plan", str(path), cwd=plugins, **plain)
    assert plan.returncode == 0
    assert "|- slow" in plan.stdout
    done = run("convert", str(path), "--out", "öut", "--cache", "cäche", cwd=plugins, **plain)
    assert done.returncode == 0, done.stderr
    assert (plugins / "öut/half/optkit.json").is_file()
    assert run("verify", "öut", cwd=plugins, **plain).returncode == 0
    none = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", **plain}
    refused = run("convert", str(path), "--out", "out", cwd=plugins, **none)
    assert refused.returncode == 4
    assert "error: a path has characters that this locale's encoding, ascii, does not have" in refused.stderr
    assert "try: PYTHONUTF8=1" in refused.stderr


def test_two_runs_of_one_recipe_at_once(plugins: Path) -> None:
    recipe(plugins, STEPS)
    lines = [[*OPTKIT, "convert", "recipe.yaml", "--out", out, "--quiet"] for out in ("out", "out", "other")]
    runs = [subprocess.Popen(line, cwd=plugins, stderr=subprocess.PIPE, text=True) for line in lines]
    said = [child.communicate(timeout=60)[1] for child in runs]
    codes = [child.returncode for child in runs]
    assert sorted(codes[:2]) == [0, 2]  # whoever is first has the folder
    assert "error: another optkit run is writing to out\n  try: wait for it" in said[codes.index(2)]
    assert codes[2] == 0, said[2]  # another folder, the same cache
    verified = run("verify", "out", "other", cwd=plugins)
    assert verified.returncode == 0, verified.stdout
    assert verified.stdout.count("holds") == 4


# ------------------------------------------------------------------------------------------------ bad input


BAD = {
    "unknown key": ("steps:", "stepz: []\nsteps:", "unknown key 'stepz'", "did you mean 'steps'?"),
    "unknown pass": ("toy.half", "toy.halv", "there is no pass 'toy.halv'", "did you mean 'toy.half'?"),
    "unknown format": ("use: toy.half", "to: onx", "there is no format 'onx'", "did you mean 'onnx'?"),
    "unknown metric": ("toy.half", "toy.half, check: ['cosin >= 0.9']", "unknown metric 'cosin'", "mean cosine?"),
    "unknown option": ("seconds: 1.2", "second: 1", "unknown key 'second'", "did you mean 'seconds'?"),
    "bad syntax": ("{id: first", "{id: first]", "this is not valid YAML", "try: "),
    "cycle": ("{id: first,", "{id: first, from: half,", "these steps wait for one another", "try: "),
    "unknown from": ("half, from: first", "half, from: fist", "there is no step 'fist'", "did you mean 'first'?"),
    "two of one id": ("id: half", "id: slow", "two steps are called 'slow'", "rename one"),
    "no route": ("use: toy.half", "to: openvino", "no conversion leads from toy to openvino", "try: "),
    "no bounds": ("toy.half", "toy.round, data: fit", "loses accuracy, so it must state its bounds", "cosine >= 0.99"),
    "no file": ("m.toy", "mm.toy", "there is no file", "did you mean 'm.toy'?"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_in_a_recipe_is_one_clear_error(name: str, plugins: Path) -> None:
    old, new, what, hint = BAD[name]
    path = recipe(plugins, STEPS)
    assert old in path.read_text(encoding="utf-8")
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    done = run("convert", "recipe.yaml", "--out", "out", cwd=plugins)
    assert done.returncode == 2
    assert done.stdout == ""
    first, where, remedy, why = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert what in first
    assert re.fullmatch(r"  at recipe\.yaml:\d+(:\d+)?", where)
    assert hint in remedy
    code = {"no route": "OPK-211", "no bounds": "OPK-213", "no file": "OPK-214"}.get(name, "OPK-210")
    assert why == f"  why: optkit explain {code}"
    assert not (plugins / "out").exists()


def test_a_backend_that_is_installed_but_broken_fails_its_steps_alone(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32), "w")
    value = helper.make_tensor_value_info
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
                              [value("x", TensorProto.FLOAT, ["batch", 4])],
                              [value("y", TensorProto.FLOAT, ["batch", 3])], [weights])  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nmodel: {onnx: m.onnx}\ndata: {judge: {random: 4}}\ncheck_on: judge\n"
        "steps: [{id: slim, use: onnx.simplify}, {id: ov, to: openvino}]\n", encoding="utf-8")  # fmt: skip
    (tmp_path / "broken/openvino").mkdir(parents=True)
    (tmp_path / "broken/openvino/__init__.py").write_text("raise ImportError('libopenvino.so.9: cannot open it')\n")
    path = os.pathsep.join(filter(None, [str(tmp_path / "broken"), os.environ.get("PYTHONPATH")]))
    done = run("convert", "recipe.yaml", "--out", "out", "--cache", "cache", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 4
    assert "recipe: 1 of 2 deliveries hold; error: ov" in done.stderr
    assert "openvino is installed but broken: import openvino failed with ImportError: libopenvino.so.9" in done.stderr
    assert "try: pip install --force-reinstall openvino" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out/slim/optkit.json").is_file()


# ------------------------------------------------------------------------------------------------ in the shell


COMPLETIONS = [
    (["pl"], {"plan"}),
    (["convert", "--o"], {"--only", "--out"}),
    (["passes", "toy.h"], {"toy.half"}),
    (["convert", "recipe.yaml", "--only", ""], {"first", "slow", "half"}),
    (["convert", "m.onnx", "--to", "openv"], {"openvino"}),
    (["doctor", "--require", "openv"], {"openvino"}),
    (["completion", ""], {"bash", "zsh", "fish"}),
    (["plan", "reci"], {"recipe.yaml"}),  # by bash itself, for the file names
]


def test_bash_really_completes(plugins: Path) -> None:
    recipe(plugins, STEPS)
    (plugins / "bin").mkdir()
    program = plugins / "bin/optkit"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m optkit "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    lines = ['export PATH="$PWD/bin:$PATH"', 'eval "$(optkit completion bash)"', "complete -p optkit",
             'compopt() { COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}")); }']  # fmt: skip
    for words, _ in COMPLETIONS:
        quoted = " ".join(f"'{word}'" for word in words)
        lines.append(
            f"COMP_WORDS=(optkit {quoted}); COMP_CWORD={len(words)}; COMPREPLY=(); "
            f'_optkit_completion optkit "{words[-1]}" ""; echo "> ${{COMPREPLY[*]}}"'
        )
    done = subprocess.run(["bash", "-c", "\n".join(lines)], cwd=plugins, capture_output=True, text=True, timeout=60,
                          check=False)  # fmt: skip
    assert "-F _optkit_completion optkit" in done.stdout
    offered = [set(line.removeprefix(">").split()) for line in done.stdout.splitlines() if line.startswith(">")]
    for (words, expected), found in zip(COMPLETIONS, offered, strict=True):
        assert found >= expected if words[-1] == "" else found == expected, words
