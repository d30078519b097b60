"""What a recipe may say under `data:`, and which files that names."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from optkit.errors import DataError, UserError
from optkit.spec.dataspec import (
    KINDS,
    DataSpec,
    ImageData,
    NpzData,
    PythonData,
    RandomData,
    TextData,
    content_digest,
    content_key,
    files,
    parse_data,
    resolve_path,
    split_callable,
    tools,
)


def complaints(value: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        parse_data(value)
    return [error["msg"].removeprefix("Value error, ") for error in caught.value.errors()]


@pytest.mark.parametrize(("value", "kind"), [
    ({"npz": "a.npz", "label": "y", "limit": 3}, NpzData),
    ({"images": "photos", "preprocess": {"resize": 256, "crop": [224, 224]}, "label": "folder"}, ImageData),
    ({"jsonl": "a.jsonl", "tokenizer": "t", "text": ["a", "b"], "max_length": 8}, TextData),
    ({"python": "a.py:make", "kwargs": {"n": 3}}, PythonData),
    ({"random": 4}, RandomData),
])  # fmt: skip
def test_the_key_that_is_present_decides_the_kind(value: dict[str, Any], kind: type) -> None:
    spec = parse_data(value)
    assert type(spec) is kind
    assert parse_data(spec) is spec


def test_paths_may_be_path_objects() -> None:
    assert NpzData(npz=Path("x") / "y.npz").npz == str(Path("x") / "y.npz")  # type: ignore[arg-type]


@pytest.mark.parametrize(("value", "message"), [
    ({}, "a dataset needs one of npz, images, jsonl, python, random, found no key"),
    ({"nzp": "a"}, "a dataset needs one of npz, images, jsonl, python, random, found nzp; did you mean 'npz'?"),
    ({"npz": "a", "random": 3}, "a dataset has one source, this one has npz and random; make it two datasets"),
    ("a.npz", "a dataset is a mapping such as {npz: file.npz}, not 'a.npz'"),
    ({"npz": "a", "limt": 3}, "npz data has no key 'limt'; did you mean 'limit'?"),
    ({"random": 3, "label": "y"}, "random data has no key 'label'; one of: random, seed"),
    ({"npz": "a", "limit": -1}, "Input should be greater than or equal to 1"),
    ({"npz": "a", "limit": True}, "Input should be a valid integer"),
    ({"random": 0}, "Input should be greater than or equal to 1"),
    ({"images": "p", "label": "file"}, "Input should be 'folder'"),
    ({"python": "module"}, "'module' names no callable; write file.py:name, or module:name"),
    ({"python": "m:f", "kwargs": {"x": float("nan")}}, "Input should be a finite number"),
    ({"jsonl": "a", "tokenizer": "t", "text": ["a"], "max_length": 8},
     "['a'] names no text; give one key, or [first, second] for pairs"),
    ({"jsonl": "a", "tokenizer": "t", "text": "a"}, "Field required"),
])  # fmt: skip
def test_a_mistake_gives_one_clear_message(value: Any, message: str) -> None:
    assert complaints(value) == [message]


@pytest.mark.parametrize(("preprocess", "message"), [
    ({"meen": [1]}, "preprocess has no key 'meen'; did you mean 'mean'?"),
    ({"resize": "256"}, "'256' is no size; give [height, width] or the shortest side, in pixels"),
    ({"scale": "one"}, "'one' is no number; write a factor such as 0.5, or a fraction such as 1/255"),
    ({"scale": "1/0"}, "'1/0' is no number; write a factor such as 0.5, or a fraction such as 1/255"),
    ({"scale": 0}, "scale must not be 0"),
    ({"scale": "1/255", "std": [0.2, 0, 0.2]}, "std must not be 0"),
    ({"scale": "1/255", "mean": [0.5, 0.5]},
     "mean has 2 values for the 3 channel(s) of RGB; give 3, or one for all"),
    ({"color": "L", "scale": "1/255", "std": [0.5, 0.5, 0.5]}, "std has 3 values for the 1 channel(s) of L; give one"),
    ({"mean": [0.485, 0.456, 0.406]},
     "mean [0.485, 0.456, 0.406] is in units of 0 to 1, but without scale pixels are 0 to 255; add scale: 1/255"),
    ({"scale": "1/255", "mean": [123.7]}, "mean [123.7] lies outside the scaled pixels, 0 to 1; mean and std apply "
     "after scale, state them in its unit"),
    ({"dtype": "uint8", "scale": "1/255"},
     "dtype uint8 keeps pixels as they are; drop scale, mean and std, or use a float dtype"),
    ({"resize": [32, 32], "crop": [64, 32]}, "crop [64, 32] is larger than resize [32, 32]"),
])  # fmt: skip
def test_a_mistake_in_preprocess_gives_one_clear_message(preprocess: dict[str, Any], message: str) -> None:
    assert complaints({"images": "photos", "preprocess": preprocess}) == [message]


def test_all_mistakes_of_an_entry_are_told_with_their_places() -> None:
    class Recipe(BaseModel):
        data: dict[str, DataSpec]

    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({"data": {"fit": {"images": 3, "limt": 1, "preprocess": {"resize": -1}}, "judge": {}}})
    assert [error["loc"] for error in caught.value.errors()] == [
        ("data", "fit", "images"), ("data", "fit", "preprocess", "resize"), ("data", "fit", "limt"), ("data", "judge"),
    ]  # fmt: skip


@pytest.mark.parametrize(("written", "value"), [("1/255", 1 / 255), ("0.5", 0.5), (2, 2.0), (0.25, 0.25)])
def test_scale_is_a_number_or_a_fraction(written: Any, value: float) -> None:
    spec = parse_data({"images": "photos", "preprocess": {"scale": written}})
    assert isinstance(spec, ImageData)
    assert spec.preprocess.scale == value


def test_every_field_is_described_for_the_schema() -> None:
    schema = TypeAdapter(DataSpec).json_schema()
    assert len(schema["anyOf"]) == len(KINDS)
    for name, model in schema["$defs"].items():
        if name != "JsonValue":
            assert all("description" in field for field in model["properties"].values()), name


def test_planning_loads_no_numpy() -> None:
    code = "import optkit.spec.dataspec, optkit.data, sys; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- paths


def test_a_path_is_relative_to_the_recipe(tmp_path: Path) -> None:
    assert resolve_path("a/b.npz", tmp_path) == tmp_path / "a" / "b.npz"
    assert resolve_path("/a/b.npz", tmp_path) == Path("/a/b.npz")


def test_a_package_is_located_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "carrier"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / "model" / "tokenizer.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve_path("package:carrier/model/tokenizer.json", Path("/x")) == package / "model" / "tokenizer.json"
    assert resolve_path("package:carrier.model/tokenizer.json", Path("/x")) == package / "model" / "tokenizer.json"
    assert resolve_path("package:carrier", Path("/x")) == package
    assert "carrier" not in sys.modules


@pytest.mark.parametrize(("text", "message", "hint"), [
    ("package:no_such_thing/a", "the package 'no_such_thing' is not installed", "pip install no-such-thing"),
    ("package:ast/a", "'ast' is a single module", "name the file itself"),
    ("package:../a", "names no package", "package:NAME/inner/path"),
    ("package:__main__/a", "'__main__' is not installed", "pip install"),
])  # fmt: skip
def test_a_package_that_can_not_be_found_says_so(text: str, message: str, hint: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        resolve_path(text, Path("/x"))
    assert hint in caught.value.hint


@pytest.mark.parametrize("text", ["file.py:make", "package:a/b.py:make", "pkg.module:make", "C:\\a.py:make"])
def test_a_callable_has_a_place_and_a_name(text: str) -> None:
    assert split_callable(text) == (text[: -len(":make")], "make")


# --- files and digests


def write(root: Path, **contents: str) -> None:
    for name, content in contents.items():
        path = root / (name.replace("__", "/").replace("INIT", "__init__") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def names(spec: Any, base: Path) -> list[str]:
    return [path.relative_to(base).as_posix() for path in files(spec, base)]


def test_files_of_npz_and_text(tmp_path: Path) -> None:
    (tmp_path / "tok").mkdir()
    for name in ("a.npz", "a.jsonl", "tok/tokenizer.json"):
        (tmp_path / name).write_text("x")
    assert names(NpzData(npz="a.npz"), tmp_path) == ["a.npz"]
    for tokenizer in ("tok", "tok/tokenizer.json"):
        spec = TextData(jsonl="a.jsonl", tokenizer=tokenizer, text="t", max_length=8)
        assert names(spec, tmp_path) == ["a.jsonl", "tok/tokenizer.json"]
    assert files(RandomData(random=3), tmp_path) == []


def test_images_are_listed_by_path_and_limited_evenly(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.JPG", "a/9.jpeg", "a/10.png", ".cache/x.bin", "a/.DS_Store"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    assert names(ImageData(images="."), tmp_path) == ["a/10.png", "a/9.jpeg", "b/1.JPG", "b/2.png"]
    assert names(ImageData(images=".", limit=2), tmp_path) == ["a/10.png", "b/1.JPG"]
    assert len(names(ImageData(images=".", limit=9), tmp_path)) == 4
    (tmp_path / "a" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"1 file\(s\) in .* are no images, the first is a.notes.txt") as caught:
        files(ImageData(images="."), tmp_path, "fit")
    assert (caught.value.subject, caught.value.hint) == (
        "data.fit", "move them away, or leave them out with ignore: ['*.txt']")  # fmt: skip
    assert len(names(ImageData(images=".", ignore=("*.txt",)), tmp_path)) == 4


def test_python_files_are_the_callable_and_what_it_imports_from_beside_it(tmp_path: Path) -> None:
    write(tmp_path, make="import json, numpy\nfrom helper import one\nimport pkg.deep\nfrom plain.x import y\n",
          helper="import other\n", other="import make\n", unused="", pkg__INIT="from . import near\n", pkg__near="",
          pkg__deep="from ..pkg.far import z\nfrom .near import *\n", pkg__far="", pkg__unused="", plain__x="",
          torch__x="", numpy__y="")  # fmt: skip
    (tmp_path / "helper.py").write_text("import other, torch.x\n")  # a plain folder torch/ loses against the package
    assert names(PythonData(python="make.py:samples"), tmp_path) == [
        "make.py", "helper.py", "other.py", "pkg/__init__.py", "pkg/deep.py", "pkg/far.py", "pkg/near.py", "plain/x.py",
    ]  # fmt: skip


def test_python_files_of_a_file_that_does_not_parse(tmp_path: Path) -> None:
    write(tmp_path, make="def (:\n")
    assert names(PythonData(python="make.py:samples"), tmp_path) == ["make.py"]
    write(tmp_path, make="x = '\\d'\nimport helper\n", helper="")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names(PythonData(python="make.py:samples"), tmp_path) == ["make.py", "helper.py"]


def test_python_files_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, mine__INIT="raise RuntimeError\n", mine__data="from .tools import a\nimport beside\n",
          mine__tools="", beside="")  # fmt: skip
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = PythonData(python="mine.data:samples")
    assert names(spec, tmp_path) == ["mine/data.py", "beside.py", "mine/__init__.py", "mine/tools.py"]
    site = tmp_path / "site-packages"
    write(site, theirs__INIT="", theirs__data="import neighbour\nfrom . import tools\n", theirs__tools="",
          neighbour="")  # fmt: skip
    monkeypatch.syspath_prepend(str(site))
    assert names(PythonData(python="theirs.data:samples"), site) == [
        "theirs/data.py", "theirs/__init__.py", "theirs/tools.py"]  # fmt: skip
    with pytest.raises(DataError, match=r"there is no module 'mine\.nothing'"):
        files(PythonData(python="mine.nothing:samples"), tmp_path)
    with pytest.raises(DataError, match="there is no module '__main__'"):
        files(PythonData(python="__main__:samples"), tmp_path)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "digits-fit.npz").write_text("x")
    with pytest.raises(DataError, match=r"^data.fit: .*digit-fit.npz does not exist") as caught:
        files(NpzData(npz="digit-fit.npz"), tmp_path, "fit")
    assert (caught.value.hint, caught.value.subject) == ("did you mean 'digits-fit.npz'?", "data.fit")
    with pytest.raises(DataError, match="does not exist") as caught:
        files(NpzData(npz="nowhere/a.npz"), tmp_path)
    assert (f"nor does the folder {tmp_path / 'nowhere'}" in caught.value.hint, caught.value.subject) == (True, "data")
    with pytest.raises(DataError, match="is not a folder"):
        files(ImageData(images="digits-fit.npz"), tmp_path)


def test_the_content_key_has_no_paths() -> None:
    text = TextData(jsonl="a", tokenizer="b", text=("x", "y"), max_length=4)
    assert content_key(text) == content_key(text.model_copy(update={"jsonl": "c", "tokenizer": "d"}))
    assert content_key(text) != content_key(text.model_copy(update={"max_length": 5}))
    assert content_key(PythonData(python="dir/a.py:make", reads=("x",))) == {
        "kind": "python", "python": "make", "kwargs": {}, "label": None, "limit": None}  # fmt: skip
    assert content_key(RandomData(random=3)) == {"kind": "random", "random": 3, "seed": 0}
    assert tools(text) == ("tokenizers",)
    assert tools(RandomData(random=3)) == ("numpy",)


def test_the_content_digest_follows_bytes_and_class_names(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "cat").mkdir(parents=True)
        (tmp_path / folder / "cat" / "1.png").write_bytes(b"x")
    one, two = (ImageData(images=folder, label="folder") for folder in ("one", "two"))
    assert content_digest(one, tmp_path) == content_digest(two, tmp_path)
    (tmp_path / "two" / "ant").mkdir()  # cat becomes class 1
    assert content_digest(one, tmp_path) != content_digest(two, tmp_path)
    write(tmp_path, make="import helper\n", helper="a = 1\n")
    (tmp_path / "read").mkdir()
    spec = PythonData(python="make.py:f", reads=("read",))
    digests = {content_digest(spec, tmp_path)}
    write(tmp_path, helper="a = 2\n")
    digests.add(content_digest(spec, tmp_path))
    (tmp_path / "read" / "x.bin").write_bytes(b"1")
    digests.add(content_digest(spec, tmp_path))
    assert len(digests) == 3
