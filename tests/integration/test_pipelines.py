"""What pipelines use: the action's steps as the runner runs them, the hook in a git repository, docs/pipelines."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_kit import folder, recipe

ROOT = Path(__file__).resolve().parents[2]
ACTION = yaml.safe_load((ROOT / ".github/actions/optkit/action.yml").read_text())
STEPS = {step["id"]: step for step in ACTION["runs"]["steps"] if "id" in step}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
GOOD, BAD = "  - {id: bin, to: toybin}\n", "  - {id: bin, to: toybni}\n"


@dataclass
class Job:
    """A workflow's job that calls the action: runs its `run` steps, keeps their outputs."""

    work: Path
    inputs: Mapping[str, str]
    outputs: dict[str, str] = field(default_factory=dict)
    summary: str = ""

    def value(self, text: str) -> str:
        """What the runner puts for each ${{ expression }} of a text."""
        known = {f"inputs.{n}": str(i.get("default", "")) for n, i in ACTION["inputs"].items()}
        known |= {f"inputs.{name}": value for name, value in self.inputs.items()}
        known |= self.outputs | {"github.action_path": str(ROOT / ".github/actions/optkit")}
        return re.sub(r"\$\{\{ *(\S+) *\}\}", lambda m: known[m[1]], text)

    def run(self, step_id: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a step as the runner does: a file for bash -eo pipefail, which appends outputs to a file."""
        step, files = STEPS[step_id], {n: self.work / f".{n.lower()}" for n in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        for file in files.values():
            file.write_text("")
        script = self.work / ".script.sh"
        script.write_text(step["run"])
        env = {
            **os.environ,
            **{name: str(file) for name, file in files.items()},
            "RUNNER_TEMP": str(self.work / ".temp"),
        }
        env |= {name: self.value(text) for name, text in step.get("env", {}).items()} | environment
        where = self.work / self.value(step.get("working-directory", "."))
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
        done = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, check=False)
        for line in files["GITHUB_OUTPUT"].read_text().splitlines():
            name, _, value = line.partition("=")
            self.outputs[f"steps.{step_id}.outputs.{name}"] = value
        self.summary += files["GITHUB_STEP_SUMMARY"].read_text()
        return done


@pytest.fixture
def work(tmp_path: Path, toy_plugin: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's checkout, with optkit's command on PATH and no cache named."""
    program = tmp_path / "bin" / "optkit"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m optkit "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("OPTKIT_CACHE", raising=False)
    return folder(tmp_path / "work")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", (ROOT / "docs/pipelines.md").read_text(), re.M | re.S)


def test_the_action_refers_to_nothing_that_is_not_there() -> None:
    text = yaml.dump(ACTION)
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(ACTION["inputs"])
    for step, output in re.findall(r"steps\.([\w-]+)\.outputs\.([\w-]+)", text):
        assert "uses" in STEPS[step] or f"{output}=" in STEPS[step]["run"]
    for step in ACTION["runs"]["steps"]:
        assert ("run" in step) == (step.get("shell") == "bash") != ("uses" in step)
        assert "${{" not in step.get("run", ""), "a value of the user's is no part of a script: it comes by env"
    extras = PROJECT["optional-dependencies"]
    assert set(ACTION["inputs"]["extras"]["default"].split(",")) <= set(extras)


def test_the_action_converts_and_begins_with_what_it_kept(work: Path) -> None:
    path = recipe(work, GOOD).rename(work / "a recipe.yaml")
    job = Job(work, {"recipe": path.name, "arguments": "--json\n--set\nname=other\n", "cache-size": "1GB"})
    assert job.run("where").returncode == 0
    done = job.run("convert")
    assert done.returncode == 0, done.stderr
    assert job.outputs["steps.convert.outputs.exit-code"] == "0"
    assert json.loads(done.stdout)["name"] == "other"
    assert (work / "build/optkit/bin").is_dir()
    assert job.summary == (work / "build/optkit/report.md").read_text()
    assert job.run("trim").returncode == 0
    assert list((work / ".temp/optkit-cache/entries").glob("*/*")), "where `where` said, which is what is saved"
    again = Job(work, job.inputs)
    again.run("where")
    (step,) = json.loads(again.run("convert").stdout)["steps"]
    assert step["cached"] == {"run": True, "check": True}


def test_the_action_ends_with_the_exit_code(work: Path) -> None:
    recipe(work, BAD)
    job = Job(work, {"recipe": "recipe.yaml"})
    job.run("where")
    done = job.run("convert")
    assert (done.returncode, job.outputs["steps.convert.outputs.exit-code"]) == (2, "2")
    assert "did you mean 'toybin'?" in done.stderr
    frozen = Job(work, {"recipe": "recipe.yaml", "frozen": "true"}, dict(job.outputs))
    recipe(work, GOOD)
    assert "there is no lock" in frozen.run("convert").stderr
    wrong = Job(work, {"recipe": "recipe.yaml", "cache-size": "a lot"}, dict(job.outputs)).run("trim")
    assert wrong.returncode == 2


def test_the_action_installs_the_optkit_it_is_part_of(work: Path) -> None:
    """With a python on PATH that writes down what it is called with: pip itself would take minutes."""
    python = work.parent / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@" end >> called\n')
    python.chmod(0o755)
    job = Job(work, {"recipe": "r.yaml", "extras": "torch,onnx", "before-install": "torch==2.13.0\n--index-url=a b\n"})
    assert job.run("install").returncode == 0
    first, second = (call.split("\n") for call in (work / "called").read_text().split("\nend\n")[:2])
    pip = ["-m", "pip", "install", "--disable-pip-version-check"]
    assert first == [*pip, "torch==2.13.0", "--index-url=a b"]
    assert second == [*pip, "--constraint", str(ROOT / ".ci/constraints.txt"), f"{ROOT}[torch,onnx]"]
    assert Path(second[5]).is_file()
    (work / "called").unlink()
    assert Job(work, {"recipe": "r.yaml", "extras": ""}).run("install").returncode == 0
    assert (work / "called").read_text().split("\n")[-3:] == [str(ROOT), "end", ""]


def test_the_hook_plans_the_recipes_of_a_commit(work: Path) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    program, *arguments = hook["entry"].split()
    assert program in PROJECT["scripts"]
    assert hook["language"] == "python"
    places = work / "recipes"
    places.mkdir()
    for file in ("m.toy", "fit.npz", "judge.npz"):
        shutil.move(work / file, places / file)
    recipe(places, GOOD)
    shutil.copy(places / "recipe.yaml", places / "other.yml")
    subprocess.run(["git", "init", "--quiet"], cwd=work, check=True)
    subprocess.run(["git", "add", "."], cwd=work, check=True)
    listed = subprocess.run(["git", "ls-files"], cwd=work, capture_output=True, text=True, check=True).stdout.split()
    files = [file for file in listed if re.search(hook["files"], file)]
    assert files == ["recipes/other.yml", "recipes/recipe.yaml"]

    def commit() -> subprocess.CompletedProcess[str]:
        command = [program, *arguments, *files]
        return subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)

    good = commit()
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.count("1 step, 1 to run, 1 to deliver") == 2
    for file in files:
        (work / file).write_text((work / file).read_text().replace("toybin", "toybni"))
    bad = commit()
    assert bad.returncode == 2
    assert all(f"{file}:11:" in bad.stderr for file in files), "the mistakes of every recipe are told at once"


def test_the_workflow_that_is_shown(work: Path) -> None:
    workflow, _, hooks = (yaml.safe_load(block) for block in blocks("yaml"))
    (step,) = [s for s in workflow["jobs"]["convert"]["steps"] if "optkit" in s["uses"]]
    assert "/.github/actions/optkit@" in step["uses"]
    assert set(step["with"]) <= set(ACTION["inputs"])
    assert all("required" not in i or n in step["with"] for n, i in ACTION["inputs"].items())
    assert (ROOT / step["with"]["recipe"]).is_file()
    (shown,) = hooks["repos"][0]["hooks"]
    (defined,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert shown["id"] == defined["id"]


def test_the_gitlab_job_that_is_shown(work: Path) -> None:
    job: dict[str, Any] = yaml.safe_load(blocks("yaml")[1])["convert"]
    (work / "recipes").mkdir()
    for file in ("m.toy", "fit.npz", "judge.npz"):
        shutil.move(work / file, work / "recipes" / file)
    recipe(work / "recipes", GOOD).rename(work / "recipes/digits.yaml")
    env = {**os.environ, "CI_PROJECT_DIR": str(work)}
    env |= {name: value.replace("$CI_PROJECT_DIR", str(work)) for name, value in job["variables"].items()}

    def run(*lines: str) -> subprocess.CompletedProcess[str]:
        script = "\n".join(["set -eo pipefail", *lines])
        return subprocess.run(["bash", "-c", script], cwd=work, env=env, capture_output=True, text=True, check=False)

    assert run(*job["script"]).returncode == 2, "without its lock"
    assert run("optkit lock recipes/digits.yaml").returncode == 0
    done = run(*job["script"])
    assert done.returncode == 0, done.stderr
    assert run(*job["after_script"]).returncode == 0
    kept = [*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"], *job["cache"]["paths"]]
    assert all((work / path).exists() for path in kept)
    (install,) = job["before_script"]
    assert set(re.search(r"optkit\[(.*)\]", install)[1].split(",")) <= set(PROJECT["optional-dependencies"])  # type: ignore[index]


def test_the_dockerfile_copies_what_an_install_needs() -> None:
    lines = (ROOT / "docs/pipelines/Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = {source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]}
    assert all((ROOT / source).exists() for source in copied)
    assert {PROJECT["readme"], "pyproject.toml", "optkit"} <= copied
    (install,) = [line.removeprefix("RUN ") for line in lines if line.startswith("RUN ")]
    assert subprocess.run(["bash", "-n", "-c", install], check=False).returncode == 0
    assert [line for line in lines if line.startswith("ENTRYPOINT")] == ['ENTRYPOINT ["optkit"]']
