"""What counts to a source model's digest: its files, the code that builds it, and what the recipe says of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from source_kit import EXTERNAL, TORCH, aged, described, linear, recipe_of, repository, trained

from optkit.cache import Cache
from optkit.errors import SourceError
from optkit.models.protobuf import external_files
from optkit.models.sources import opened_artifact, source_artifact
from optkit.recipe import Recipe, load_recipe

Edit = Callable[[Path], Any]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A training repository with everything in it, and its module."""
    base = repository(tmp_path_factory.mktemp("repository"))
    return base, trained(base)


@pytest.fixture
def repo(built: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of the repository that a test may change."""
    return Path(shutil.copytree(built[0], tmp_path / "repo"))


def digest(folder: Path, cache: Path, *changes: tuple[str, str]) -> str:
    artifact = source_artifact(recipe_of(folder, *changes), Cache(cache))
    assert artifact is not None
    return artifact.digest


def append(name: str) -> Edit:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + b"\n")


FILES = ("weights: w.safetensors", "weights: w.safetensors\n  files: [models/classes.txt, tables]")


KWARGS = ("weights: w.safetensors", "weights: w.safetensors\n  kwargs: {width: 4}")


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A repository whose weights are any bytes: a digest opens no model."""
    base = repository(tmp_path / "plain")
    (base / "w.safetensors").write_bytes(b"weights")
    (base / "models/classes.txt").write_text("cat")
    (base / "tables/inner").mkdir(parents=True)
    (base / "tables/inner/t.csv").write_text("1")
    (base / "models/unused.py").write_text("")
    return aged(base)


@pytest.mark.parametrize(
    "edit",
    [
        append("models/net.py"),
        append("models/helpers.py"),
        append("w.safetensors"),
        append("models/classes.txt"),
        append("tables/inner/t.csv"),
        lambda folder: (folder / "tables/new.csv").write_text("2"),
    ],
)
def test_what_changes_the_model_changes_its_digest(plain: Path, tmp_path: Path, edit: Edit) -> None:
    before = digest(plain, tmp_path / "cache", FILES)
    edit(plain)
    assert digest(plain, tmp_path / "cache", FILES) != before


@pytest.mark.parametrize(
    "change",
    [
        KWARGS,
        ("weights: w.safetensors", "weights: w.safetensors\n  strict: false"),
        ("  weights: w.safetensors\n", ""),
        ("net.py:build", "net.py:branch"),
        ("3, 8, 8", "3, 9, 9"),
        ("check_on: judge", "check_on: judge\noutputs: [logits]"),
    ],
)
def test_so_does_what_the_recipe_says_of_it(plain: Path, tmp_path: Path, change: tuple[str, str]) -> None:
    assert digest(plain, tmp_path / "cache", change) != digest(plain, tmp_path / "cache")


@pytest.mark.parametrize(
    "edit",
    [
        lambda folder: [os.utime(path) for path in folder.rglob("*")],
        append("models/unused.py"),
        append("models/classes.txt"),
        lambda folder: (folder / "models/__pycache__").mkdir(),
        append("judge.npz"),
    ],
)
def test_what_does_not_change_it_keeps_the_digest(plain: Path, tmp_path: Path, edit: Edit) -> None:
    before = digest(plain, tmp_path / "cache")
    edit(plain)
    assert digest(plain, tmp_path / "cache") == before


def test_a_moved_checkout_has_the_same_digest_and_its_own_descriptor(plain: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    here = source_artifact(recipe_of(plain, FILES), cache)
    moved = Path(shutil.copytree(plain, tmp_path / "elsewhere/deep"))
    there = source_artifact(recipe_of(moved, FILES), cache)
    assert here is not None
    assert there is not None
    assert here.digest == there.digest
    assert json.loads(there.path.read_text())["factory"] == f"{moved}/models/net.py:build"
    assert json.loads(here.path.read_text())["factory"] == f"{plain}/models/net.py:build"


def test_code_on_the_path_counts_and_installed_packages_do_not(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib/mylayers").mkdir(parents=True)
    (tmp_path / "lib/mylayers/__init__.py").write_text("from . import inner")
    (tmp_path / "lib/mylayers/inner.py").write_text("")
    (tmp_path / "venv/site-packages").mkdir(parents=True)
    (tmp_path / "venv/site-packages/theirs.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    monkeypatch.syspath_prepend(tmp_path / "venv/site-packages")
    net = plain / "models/net.py"
    net.write_text(f"import mylayers, theirs\n{net.read_text()}")
    before = digest(plain, tmp_path / "cache")
    (tmp_path / "venv/site-packages/theirs.py").write_text("changed = 1")
    assert digest(plain, tmp_path / "cache") == before
    (tmp_path / "lib/mylayers/inner.py").write_text("changed = 1")
    assert digest(plain, tmp_path / "cache") != before


def test_an_importable_module_counts_with_its_package(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib/trainpkg").mkdir(parents=True)
    for name in ("__init__", "zoo", "parts", "unused"):
        (tmp_path / f"lib/trainpkg/{name}.py").write_text("")
    (tmp_path / "lib/trainpkg/zoo.py").write_text("from .parts import x\ndef build(): pass\n")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    change = ("models/net.py:build", "trainpkg.zoo:build")
    before = digest(plain, tmp_path / "cache", change)
    (tmp_path / "lib/trainpkg/unused.py").write_text("1")
    assert digest(plain, tmp_path / "cache", change) == before
    (tmp_path / "lib/trainpkg/parts.py").write_text("1")
    assert digest(plain, tmp_path / "cache", change) != before
    recipe = recipe_of(plain, ("models/net.py:build", "trainpkg.nozoo:build"))
    with pytest.raises(SourceError, match=r"no module 'trainpkg\.nozoo'"):
        source_artifact(recipe, Cache(tmp_path / "cache"))


def test_the_code_of_a_pickled_module_counts(
    built: tuple[Path, Any], repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(repo / "models")
    change = (TORCH, "pickle: whole.pt\n  trust_pickle: true")
    before = digest(repo, tmp_path / "cache", change)
    append("models/helpers.py")(repo)
    after = digest(repo, tmp_path / "cache", change)
    assert after != before
    monkeypatch.undo()  # without its code it cannot be loaded, which is told when it is
    assert digest(repo, tmp_path / "cache", change) not in (before, after)


def test_a_big_file_is_not_read_for_a_plan(plain: Path, tmp_path: Path) -> None:
    with (plain / "w.safetensors").open("r+b") as handle:
        handle.truncate(65 << 20)
    recipe = recipe_of(plain)
    assert source_artifact(recipe, Cache(tmp_path / "cache"), known_only=True) is None


def test_a_file_that_goes_missing_between_plan_and_run(plain: Path, tmp_path: Path) -> None:
    recipe = recipe_of(plain)
    (plain / "w.safetensors").unlink()
    with pytest.raises(SourceError, match=r"not there: .*w\.safetensors") as caught:
        source_artifact(recipe, Cache(tmp_path / "cache"))
    assert caught.value.subject == "model"
    (plain / "w.safetensors").touch()
    (plain / "models/net.py").unlink()
    with pytest.raises(SourceError, match=r"not there: .*net\.py"):
        opened_artifact(recipe, tmp_path)


def test_external_data_is_found_in_the_files_own_bytes(tmp_path: Path) -> None:
    assert external_files(linear(tmp_path / "plain.onnx")) == ()
    assert external_files(linear(tmp_path / "m.onnx", **EXTERNAL)) == ("m.data",)
    assert external_files(linear(tmp_path / "if/m.onnx", inner=True, **EXTERNAL, convert_attribute=True)) == ("m.data",)
    onnx.save(onnx.load(tmp_path / "m.onnx"), tmp_path / "back.onnx")
    assert external_files(tmp_path / "back.onnx") == ()
    for number, data in enumerate((b"", b"\x08\xff\xff", b"<html>not found</html>", b"\x3a\xff\x01")):
        (tmp_path / f"{number}.onnx").write_bytes(data)
        assert external_files(tmp_path / f"{number}.onnx") == ()


def onnx_recipe(folder: Path) -> Recipe:
    (folder / "r.yaml").write_text(
        "version: 1\nmodel:\n  onnx: m.onnx\ndata: {judge: {random: 4}}\ncheck_on: judge\n"
        "steps: [{id: ov, to: openvino}]\n"
    )
    return load_recipe(folder / "r.yaml")


def test_external_data_counts_and_neighbours_do_not(tmp_path: Path) -> None:
    linear(tmp_path / "m.onnx", **EXTERNAL)
    (tmp_path / "x").write_text("a file whose name is in the model")
    recipe, cache = onnx_recipe(aged(tmp_path)), Cache(tmp_path / "cache")
    artifact = source_artifact(recipe, cache)
    assert artifact is not None
    assert artifact.files == ("m.onnx", "m.data")
    assert source_artifact(recipe, cache) == artifact  # out of the cache's memory, where its name lies too
    (tmp_path / "x").write_text("changed")
    assert source_artifact(recipe, cache) == artifact
    data = (tmp_path / "m.data").read_bytes()
    (tmp_path / "m.data").write_bytes(bytes(len(data)))
    changed = source_artifact(recipe, cache)
    assert changed is not None
    assert changed.digest != artifact.digest


@pytest.mark.parametrize(("location", "what"), [
    (None, "keeps weights in 'm.data', which is not beside it"),
    ("../m.data", "keeps weights at '../m.data', outside its own folder"),
    ("/etc/passwd", "outside its own folder"),
    ("C:\\w.data", "outside its own folder"),
])  # fmt: skip
def test_external_data_that_is_not_there(tmp_path: Path, location: str | None, what: str) -> None:
    path = linear(tmp_path / "m.onnx", **EXTERNAL)
    if location is None:
        (tmp_path / "m.data").unlink()
    else:
        model = onnx.load(path, load_external_data=False)
        model.graph.initializer[0].external_data[0].value = location
        path.write_bytes(model.SerializeToString())
    recipe = onnx_recipe(tmp_path)
    with pytest.raises(SourceError) as caught:
        described(recipe, Cache(tmp_path / "cache"))
    assert what in caught.value.what
    assert str(caught.value.where).endswith("r.yaml:3:3")
    assert caught.value.hint
