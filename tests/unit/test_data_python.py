"""Samples from the user's own code, and random ones."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from data_kit import IMAGE, complaint, opened

from optkit.artifact import Dim, TensorSpec
from optkit.spec.dataspec import PythonData, RandomData


def script(folder: Path, body: str, name: str = "make") -> str:
    (folder / f"{name}.py").write_text("import numpy as np\nIMAGE = np.zeros((3, 4, 5), np.float32)\n" + body)
    return f"{name}.py:make"


def test_a_callable_gets_its_arguments_and_labels_are_taken_out(tmp_path: Path) -> None:
    place = script(tmp_path, "def make(count, start=0):\n    for i in range(start, count):\n"
                             "        yield {'image': IMAGE + i, 'y': i}\n")  # fmt: skip
    dataset = opened(PythonData(python=place, kwargs={"count": 5, "start": 1}, label="y"), tmp_path)
    assert (len(dataset), [y for _, y in dataset.iter_labelled()]) == (4, [1, 2, 3, 4])
    assert [sample["image"].max() for sample in dataset] == [1, 2, 3, 4]
    assert dataset.preprocessing == {"kind": "python", "callable": "make", "kwargs": {"count": 5, "start": 1}}
    limited = opened(PythonData(python=place, kwargs={"count": 5}, label="y", limit=2), tmp_path)
    assert (len(limited), len(list(limited))) == (2, 2)


def test_a_callable_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(
        tmp_path, "class Sets:\n    @staticmethod\n    def make():\n        return [{'image': IMAGE}]\n", "optkit_mod"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(opened(PythonData(python="optkit_mod:Sets.make"), Path("/"))) == 1
    del sys.modules["optkit_mod"]


def test_modules_beside_the_file_are_its_own(tmp_path: Path) -> None:
    datasets = []
    for folder in ("one", "two"):
        (tmp_path / folder / "pkg").mkdir(parents=True)
        (tmp_path / folder / "helper.py").write_text(f"VALUE = {len(folder) if folder == 'one' else 7}\n")
        (tmp_path / folder / "pkg" / "late.py").write_text(f"VALUE = {1 if folder == 'one' else 2}\n")
        place = script(tmp_path / folder, "import helper\ndef make():\n    yield {'image': IMAGE + helper.VALUE}\n"
                       "    from pkg.late import VALUE\n    yield {'image': IMAGE + VALUE}\n")  # fmt: skip
        datasets.append(opened(PythonData(python=place), tmp_path / folder))
    path, modules = list(sys.path), set(sys.modules)
    pairs = [[sample["image"].max().item() for sample in both] for both in zip(*datasets, strict=True)]
    assert pairs == [[3, 7], [1, 2]]
    assert (sys.path, set(sys.modules) - modules) == (path, set())
    assert not {"helper", "pkg", "pkg.late"} & set(sys.modules)
    assert not list(tmp_path.rglob("__pycache__"))
    (tmp_path / "one" / "helper.py").write_text("VALUE = 9\n")
    assert next(iter(opened(PythonData(python="make.py:make"), tmp_path / "one")))["image"].max() == 9


@pytest.mark.parametrize(("body", "message", "details"), [
    ("def make():\n    yield {'image': IMAGE}\n    inner()\ndef inner():\n    raise KeyError('lost')\n",
     "make.py:make: making sample 1 raised KeyError: 'lost'", "make.py:7 in inner"),
    ("def make():\n    return 1 / 0\n", "calling it raised ZeroDivisionError: division by zero", "make.py:4 in make"),
    ("raise ValueError('top')\n", "loading it raised ValueError: top", "make.py:3 in <module>"),
    ("def make(:\n", "loading it raised SyntaxError", "make.py:3\n"),
    ("import sys\nsys.exit(3)\n", "loading it raised SystemExit: 3", "make.py:4 in <module>"),
    ("import helper\n", "loading it raised RuntimeError: beside", "helper.py:2 in <module>"),
    ("def make(need):\n    yield {}\n", "calling it raised TypeError: make() missing 1 required", "make.py\n"),
    ("class make:\n    def __iter__(self):\n        raise OSError(5)\n",
     "iterating over what it returned raised OSError: 5", "make.py:5 in __iter__"),
])  # fmt: skip
def test_an_error_in_the_users_code_names_its_line(tmp_path: Path, body: str, message: str, details: str) -> None:
    (tmp_path / "helper.py").write_text("\nraise RuntimeError('beside')\n")
    place = script(tmp_path, body)
    error = complaint(lambda: list(opened(PythonData(python=place), tmp_path)))
    assert message in error.what
    assert error.details.startswith(str(tmp_path / details.partition(":")[0]) if ":" in details else str(tmp_path))
    assert details in error.details + "\n"
    assert "optkit/data" not in error.details


@pytest.mark.parametrize(("body", "message", "hint"), [
    ("def mike(): pass\n", "make.py has no 'make'", "did you mean 'mike'?"),
    ("make = 3\n", "make.py:make is no callable but a int", "name a function"),
    ("def make():\n    return {'image': IMAGE}\n", "returned a dict, not an iterable of samples", "a generator of"),
    ("def make():\n    return None\n", "returned a NoneType, not an iterable of samples", "list or a generator"),
    ("def make():\n    return [IMAGE]\n", "sample 0 is a ndarray, not a dict", "yield {'input_name': array}"),
    ("def make():\n    return []\n", "it has no samples", "would prove nothing"),
    ("def make():\n    return [{'image': IMAGE.tolist()}]\n",
     "sample 0, input 'image': expected a numpy array of float32, found builtins.list", "numpy.asarray"),
    ("def make():\n    return [{'image': IMAGE, 'y': 1}]\n", "sample 0 has 'y', neither an input nor the label",
     "return only what the model takes"),
    ("def make():\n    return [{'imag': IMAGE}]\n", "sample 0 lacks input 'image'", "did you mean 'imag'?"),
])  # fmt: skip
def test_what_a_callable_gives_is_checked(tmp_path: Path, body: str, message: str, hint: str) -> None:
    place = script(tmp_path, body)
    error = complaint(lambda: list(opened(PythonData(python=place), tmp_path)))
    assert message in error.what
    assert hint in error.hint


def test_a_label_that_is_missing_is_told(tmp_path: Path) -> None:
    place = script(tmp_path, "def make():\n    return [{'image': IMAGE, 'labl': 1}]\n")
    error = complaint(lambda: list(opened(PythonData(python=place, label="label"), tmp_path)))
    assert "sample 0 has no label 'label'" in error.what
    assert error.hint == "did you mean 'labl'?"
    place = script(tmp_path, "def make():\n    return [{'image': IMAGE, 'label': None}]\n")
    error = complaint(lambda: list(opened(PythonData(python=place, label="label"), tmp_path)))
    assert error.hint == "-1 where a sample has no class"


def test_passes_must_give_the_same_samples(tmp_path: Path) -> None:
    dataset = opened(
        PythonData(
            python=script(tmp_path, "def make():\n    return [{'image': np.random.rand(3, 4, 5).astype('float32')}]\n")
        ),
        tmp_path,
    )
    list(dataset)
    assert "gives another first sample each time it is called" in complaint(lambda: list(dataset)).what
    dataset = opened(
        PythonData(python=script(tmp_path, "made = iter([{'image': IMAGE}] * 3)\ndef make():\n    return made\n")),
        tmp_path,
    )
    assert len(dataset) == 3
    assert "it has 3 samples, but a later pass over it gave 0" in complaint(lambda: list(dataset)).what
    dataset = opened(PythonData(python=script(
        tmp_path, "class make:\n    def __len__(self): return 4\n    def __iter__(self): yield {'image': IMAGE}\n"
    )), tmp_path)  # fmt: skip
    assert len(dataset) == 4
    assert "it has 4 samples, but a later pass over it gave 1" in complaint(lambda: list(dataset)).what


def test_random_samples_follow_the_declarations() -> None:
    inputs = (
        TensorSpec("plain", "float32", ("batch", 500)), TensorSpec("ranged", "float16", ("batch", "seq"), range=(2, 3)),
        TensorSpec("ids", "int32", ("batch", 500), range=(3, 5)), TensorSpec("flag", "bool", ("batch", 50)),
        TensorSpec("attention_mask", "int64", ("batch", "seq")),
    )  # fmt: skip
    dims = {"batch": Dim(1, 2, 4), "seq": Dim(1, 400, 800)}
    dataset = opened(RandomData(random=3, seed=7), Path("/"), *inputs, dims=dims)
    assert (len(dataset), dataset.synthetic, dataset.labelled) == (3, True, False)
    first, second, _ = dataset
    assert {name: array.shape for name, array in first.items()} == {
        "plain": (500,), "ranged": (400,), "ids": (500,), "flag": (50,), "attention_mask": (400,)}  # fmt: skip
    assert abs(first["plain"].mean()) < 0.2  # 4 standard errors of 500 standard normal values
    assert 2 <= first["ranged"].min() < 2.1 < 2.9 < first["ranged"].max() <= 3
    assert set(first["ids"].tolist()) == {3, 4, 5}
    assert first["attention_mask"].all()
    assert set(first["flag"].tolist()) == {False, True}
    assert not np.array_equal(first["plain"], second["plain"])
    again = opened(RandomData(random=5, seed=7), Path("/"), *inputs, dims=dims)
    np.testing.assert_array_equal(next(iter(again))["plain"], first["plain"])
    other = opened(RandomData(random=5, seed=8), Path("/"), *inputs, dims=dims)
    assert not np.array_equal(next(iter(other))["plain"], first["plain"])


def test_random_samples_where_inputs_share_no_batch_axis() -> None:
    inputs = (IMAGE, TensorSpec("size", "int64", (2,), range=(1, 9)))
    feeds = list(opened(RandomData(random=2), Path("/"), *inputs).batches(8))
    assert [(f["image"].shape, f["size"].shape, n) for f, n, _ in feeds] == [((4, 3, 4, 5), (2,), 1)] * 2


@pytest.mark.parametrize(("spec", "message", "hint"), [
    (TensorSpec("ids", "int64", ("batch", 4)), "random values for input 'ids' (int64) need its range",
     "for token ids 0 to vocabulary size - 1"),
    (TensorSpec("ids", "int64", ("batch", 4), range=(0.2, 0.8)), "holds no int64", "correct inputs.ids.range"),
    (TensorSpec("ids", "int8", ("batch", 4), range=(0, 300)), "the range of input 'ids' exceeds int8", "correct"),
    (TensorSpec("x", "float32", ("batch", "free")), "the dim 'free' has no range", "add dims: {free:"),
])  # fmt: skip
def test_what_can_not_be_drawn_is_asked_for(spec: TensorSpec, message: str, hint: str) -> None:
    error = complaint(lambda: opened(RandomData(random=2), Path("/"), spec))
    assert message in error.what
    assert hint in error.hint
