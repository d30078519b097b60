"""Every code block of the README and the guides: recipes are planned or run, Python is run, commands too."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from documents import BLOCKS, DOCUMENTS, ROOT, Block, blocks, merged, of_kind, project, recipes_of

from optkit.cache import Cache
from optkit.cli import cli
from optkit.execute import execute
from optkit.planning import make_plan
from optkit.recipe import load_recipe
from optkit.reports.files import write_reports

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

NOT_RUN = {
    "docs/pipelines.md": 3,  # GitHub's, GitLab's and pre-commit's own YAML, which test_pipelines runs
    "docs/targets/edgetpu.md": 1,  # Coral's device and its compiler
    "docs/targets/tensorrt.md": 1,  # a GPU
}
"""How many blocks of each document cannot be run here, and are marked so in it."""

RUN = {"plan", "convert", "explain", "passes", "inspect", "lint", "schema", "init", "verify", "report", "diff",
       "baseline", "cache", "check", "lock"}  # fmt: skip
"""The commands that are run, not only parsed: those that take less than a second once the recipe is made."""


def test_nothing_is_left_out_in_silence() -> None:
    marked = Counter(str(b.document.relative_to(ROOT)) for b in BLOCKS if b.not_run)
    assert dict(marked) == NOT_RUN
    assert {b.kind for b in BLOCKS} == {"yaml", "python", "console"}, "a block of another kind would not be tested"
    for document in DOCUMENTS:  # no fence that the pattern does not see, no mark that marks nothing
        text = document.read_text(encoding="utf-8")
        found = blocks(document)
        assert len(re.findall(r"^ *```", text, re.M)) == 2 * len(found), document
        assert len(re.findall("<!-- (?:not run|into): ", text)) == sum(bool(b.not_run or b.into) for b in found)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.not_run], ids=str)
def test_what_cannot_be_run_is_at_least_well_formed(block: Block) -> None:
    if block.kind == "python":
        compile(block.text, str(block), "exec")
    elif block.kind == "yaml":
        assert yaml.safe_load(block.text)


# ------------------------------------------------------------------------------------------------ recipes


WHOLE = [yaml.safe_load(b.text) for b in of_kind("yaml") if re.search(r"^version:", b.text, re.M)]

PLANNED = {
    "digits-edgetpu": "test_edgetpu runs its like",
    "digits-tensorrt": "test_recipes builds such engines",
    "keras-digits": "test_recipes runs the whole of it",
}
"""Whole recipes that are planned here and run elsewhere: each would take its own half a minute."""

PRELUDE = """
import importlib.util
import numpy as np
spec = importlib.util.spec_from_file_location("digits", "recipes/models/digits.py")
digits = importlib.util.module_from_spec(spec)
spec.loader.exec_module(digits)
module = digits.build().eval()
images = np.random.default_rng(0).random((32, 1, 32, 32), np.float32)
batch = images[:8]
"""
"""What the README's Python has from the reader: a module, images and a batch of them."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("documents") / "project")


def written(block: Block, place: Path) -> Iterator[Path]:
    """The recipes of a block, each at the same path in the project."""
    for recipe in recipes_of(block):
        path = place / "recipes" / f"block-{block.line}.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        yield path


@pytest.mark.parametrize("block", [b for b in of_kind("yaml") if "baseline:" not in b.text], ids=str)
def test_a_recipe_is_planned(block: Block, place: Path) -> None:
    for path in written(block, place):
        assert make_plan(load_recipe(path)).deliver


# ------------------------------------------------------------------------------------------------ what is run


def test_what_is_shown_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole recipes, all Python, and the commands: one test, since all of it needs what the recipes make."""
    place = project(tmp_path / "project")
    monkeypatch.chdir(place)
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
    convert_all(place, Cache(tmp_path / "cache"))
    optkit("baseline", "save", "build/digits", "--to", "recipes/baseline.json")
    for block in of_kind("yaml"):
        if "baseline:" in block.text:
            assert [make_plan(load_recipe(path)).recipe.baseline for path in written(block, place)]
    for document in dict.fromkeys(block.document for block in of_kind("python")):
        parts = [block.text for block in of_kind("python") if block.document == document]
        if document.name == "README.md":
            parts.insert(0, PRELUDE)
        run_python("\n".join(parts), document)
    for block in of_kind("console"):
        for words in lines(block):
            if words[0] == "optkit" and words[1] in RUN and not any(f"build/{n}/" in " ".join(words) for n in PLANNED):
                optkit(*words[1:])


def convert_all(place: Path, cache: Cache) -> None:
    """Run the whole recipes of the documents; beside them the ONNX file that some commands speak of."""
    run = [recipe for recipe in WHOLE if recipe["name"] not in PLANNED]
    for recipe in (merged(run), *run):
        path = place / "recipes" / f"{recipe['name']}.yaml"
        raced = recipe["name"] == "digits"  # the baseline made of it holds a speed
        path.write_text(yaml.safe_dump({**recipe, "speed": raced}, sort_keys=False), encoding="utf-8")
        out = place / "build" / recipe["name"]
        report = execute(make_plan(load_recipe(path)), out=out, cache=cache, jobs=2)
        write_reports(report, out)
        assert report.exit_code == 0, [s["error"] for s in report.steps if s["error"]]
        assert recipe["name"] == "all" or all(step["cached"]["run"] for step in report.steps)
    for to in ("recipes/model.onnx", "model.onnx"):
        shutil.copy(place / "build/digits-onnxruntime/slim/model.onnx", place / to)


def run_python(code: str, document: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (document, done.stderr[-3000:])


def optkit(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "optkit", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stderr[-3000:])


# ------------------------------------------------------------------------------------------------ command lines


def lines(block: Block) -> Iterator[list[str]]:
    """The command lines of a block, their comments taken off."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def command_of(words: list[str]) -> tuple[click.Command, click.Context]:
    """An optkit command and its parsed arguments. Raises click's UsageError for what does not parse."""
    context, command = click.Context(cli, info_name="optkit"), cli
    rest = words
    while isinstance(command, click.Group):
        name, *rest = rest
        found = command.get_command(context, name)
        assert found is not None, f"no command {name!r}"
        command = found  # type: ignore[assignment]
        if isinstance(command, click.Group):
            context = click.Context(command, parent=context, info_name=name)
    return command, command.make_context(words[-len(rest) - 1], list(rest), parent=context)


@pytest.mark.parametrize("block", of_kind("console"), ids=str)
def test_a_command_line_is_right(block: Block) -> None:
    for words in lines(block):
        if words[0] == "optkit":
            command_of(words[1:])
        elif words[0] == "pip":
            assert words[1] == "install"
            for extras in re.findall(r"optkit\[(.*)\]", " ".join(words)):
                assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
        else:
            assert words[0] == "export", f"{words[0]} is a command that this test does not know"


def without_blocks(document: Path) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)


def mentioned() -> list[tuple[str, str]]:
    """Every `optkit ...` in the running text of the documents, with its document."""
    found = []
    for document in DOCUMENTS:
        text = re.sub(r"^ *```.*?^ *```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
        found += [
            (str(document.relative_to(ROOT)), " ".join(code.split())) for code in re.findall(r"`(optkit [^`]+)`", text)
        ]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize(("document", "code"), mentioned(), ids=str)
def test_a_command_in_running_text_is_there(document: str, code: str) -> None:
    words = [word.strip("[],;.") for word in code.split()[1:]]
    command: click.Command = cli
    context = click.Context(cli, info_name="optkit")
    while isinstance(command, click.Group) and words and not words[0].startswith("-") and words[0] != "...":
        found = command.get_command(context, words[0])
        assert found is not None, f"no command {words[0]!r}"
        command, words = found, words[1:]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.partition("=")[0] for word in words if word.startswith("-") and word != "-"} <= known | {"--help"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(
        r"\]\(([^)\s]+)\)", re.sub(r"^ *```.*?^ *```$", "", document.read_text(), flags=re.M | re.S)
    ):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}, target
