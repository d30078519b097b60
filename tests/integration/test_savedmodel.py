"""SavedModels: read from their bytes, run by TensorFlow, written the same every time, delivered as TF Serving wants."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tf_kit

import optkit
from optkit.artifact import Artifact, Signature, TensorSpec
from optkit.drafting.shorthand import model_section
from optkit.errors import DataError, RecipeError, SourceError, StepError, UnavailableError, UserError
from optkit.formats.tensorflow import core as tf_core
from optkit.formats.tensorflow import savedmodel, savedmodel_write
from optkit.models.opened import artifact_at
from optkit.runners.savedmodel_runner import RUNNER

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tf_kit.saved(tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tf_kit.saved(tmp_path_factory.mktemp("several") / "model", {"first": ["x"], "second": ["z"]})


def test_it_is_described_without_tensorflow(plain: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from optkit.runners.savedmodel_runner import RUNNER\n"
        f"s = RUNNER.describe(Path({str(plain)!r}), {{}}); print(*s.inputs, *s.outputs, sep=' | ')\n"
        f"print(RUNNER.inspect(Path({str(plain)!r}))['operators']['MatMul'], 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["x: float32[x_0, 3] | y: float32[y_0, 4]", "1 False"]


def test_the_signature_is_chosen(several: Path) -> None:
    with pytest.raises(SourceError, match="2 signatures, none of them 'serving_default': first, second") as caught:
        RUNNER.describe(several, {})
    assert caught.value.hint == (
        "choose one: model: {savedmodel: model, signature: first}; without a recipe --set model.signature=first"
    )
    with pytest.raises(SourceError, match="no signature 'secund'; it has first, second") as caught:
        RUNNER.describe(several, {"signature": "secund"})
    assert caught.value.hint == "did you mean 'second'?"
    assert [t.name for t in RUNNER.describe(several, {"signature": "second"}).inputs] == ["z"]
    made = tf_kit.source(several, signature="second")
    with RUNNER.open(made) as session:
        assert session.provider.startswith("TensorFlow CPU")
        assert session.infer({"z": X})["y"].shape == (2, 4)
    assert RUNNER.inspect(several)["signatures"] == ["first", "second"]
    with optkit.open_artifact(several, model={"signature": "second"}) as model:
        assert model(z=X)["y"].shape == (2, 4)
    with pytest.raises(RecipeError) as mistaken:
        optkit.open_artifact(several, model={"signatur": "second"})
    assert str(mistaken.value) == "model: unknown key 'signatur'\n  try: did you mean 'signature'?"


@pytest.mark.parametrize("name", ["savedmodel.to_onnx", "savedmodel.to_openvino", "savedmodel.to_tflite"])
def test_another_signature_than_the_default_is_converted(name: str, several: Path, tmp_path: Path) -> None:
    made = tf_kit.converted(name, tf_kit.source(several, signature="second"), tmp_path, {"z_0": tf_kit.DIMS["batch"]})
    assert made.signature is not None
    assert made.signature.inputs[0].name == "z"


def test_a_model_without_a_signature(tmp_path: Path) -> None:
    path = tf_kit.saved(tmp_path / "model", {})
    with pytest.raises(SourceError, match="has no signature") as caught:
        RUNNER.describe(path, {})
    assert "tf.saved_model.save(module, folder, signatures=function)" in caught.value.hint


def test_what_is_no_saved_model(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for content, what in (
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"\xff" * 300, "no SavedModel, or damaged"),
        (b"\x08\x01", "it holds no graph"),
        (plain.read_bytes()[:-200], "no SavedModel, or damaged"),
    ):
        path = tmp_path / "saved_model.pb"
        path.write_bytes(content)
        for read in (savedmodel.describe, savedmodel.inspect):
            with pytest.raises(SourceError, match=what):
                read(path)
    with pytest.raises(UserError, match="holds no model optkit knows"):
        model_section(str(tmp_path / "empty"))
    left = tmp_path / "left"
    left.mkdir()
    shutil.copy(plain, left)
    with pytest.raises(SourceError, match=r"lacks variables/variables\.index") as caught:
        RUNNER.describe(left / "saved_model.pb", {})
    assert "copy the whole folder" in caught.value.hint


def test_bytes_that_changed_never_crash(plain: Path, tmp_path: Path) -> None:
    """Whatever a byte becomes, the file is read or refused by one of optkit's own errors."""
    whole = bytearray(plain.read_bytes())
    folder = tmp_path / "model"
    shutil.copytree(plain.parent, folder)
    generator = np.random.default_rng(0)
    refused = 0
    for place in generator.integers(0, len(whole), 150):
        changed = bytearray(whole)
        changed[place] = int(generator.integers(0, 256))
        (folder / "saved_model.pb").write_bytes(changed)
        try:
            RUNNER.describe(folder / "saved_model.pb", {})
        except SourceError:
            refused += 1
    assert 0 < refused < 150


def test_weights_that_changed_are_refused(plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(plain.parent, folder)
    index, values = folder / "variables/variables.index", folder / "variables/variables.data-00000-of-00001"
    values.write_bytes(values.read_bytes()[:5])
    with pytest.raises(SourceError, match="cannot be loaded"), RUNNER.open(tf_kit.source(folder / "saved_model.pb")):
        pass
    index.write_bytes(index.read_bytes()[:-20])
    with pytest.raises(SourceError, match="cannot be loaded"), RUNNER.open(tf_kit.source(folder / "saved_model.pb")):
        pass


def test_where_a_saved_model_may_lie(plain: Path, tmp_path: Path) -> None:
    for text in (str(plain), str(plain.parent)):
        artifact, section = artifact_at(text, None, {}, tmp_path)
        assert section == {"savedmodel": str(plain.parent)}
        assert artifact.path == plain
        assert artifact.files == (
            "saved_model.pb",
            "variables/variables.data-00000-of-00001",
            "variables/variables.index",
        )
    shutil.copytree(plain.parent, tmp_path / "served/1")
    assert artifact_at(str(tmp_path / "served"), None, {}, tmp_path)[0].path == tmp_path / "served/1/saved_model.pb"
    shutil.copytree(plain.parent, tmp_path / "served/12")
    with pytest.raises(UserError, match="holds versions 1, 12 of a SavedModel") as caught:
        artifact_at(str(tmp_path / "served"), None, {}, tmp_path)
    assert "served/12" in str(caught.value)


def test_names_that_python_would_not_take(tmp_path: Path) -> None:
    names = ["b", "a", "in/put.1", "x:0", "with space", "1st"]
    specs = tuple(TensorSpec(name, "float32", ("batch", 2), "NC") for name in names)
    signature = Signature(
        specs, (TensorSpec("sum:0", "float32", ("batch", 2)), TensorSpec("b", "float32", ("batch", 2)))
    )
    weights = {name: np.float32(place + 1) for place, name in enumerate(names)}

    def call(tensors: object) -> dict[str, object]:
        assert isinstance(tensors, dict)
        return {"sum:0": sum(tensors[name] * weights[name] for name in names), "b": tensors["b"]}

    digests = set()
    for turn in ("one", "two"):
        savedmodel_write.write(tmp_path / turn, call, signature)
        digests.add((tmp_path / turn / "saved_model.pb").read_bytes())
    assert len(digests) == 1
    path = tmp_path / "one/saved_model.pb"
    assert savedmodel.describe(path) == signature  # the names of dims, the order and the layouts too
    feeds = {name: np.full((3, 2), place, np.float32) for place, name in enumerate(names)}
    with RUNNER.open(tf_kit.source(path)) as session:
        answer = session.infer(feeds)
    np.testing.assert_allclose(answer["sum:0"], np.full((3, 2), sum(place * (place + 1) for place in range(6))))
    loaded = tf_core.load().saved_model.load(str(path.parent)).signatures["serving_default"]
    assert set(loaded.structured_input_signature[1]) == set(names)
    with pytest.raises(StepError, match="cannot have an input called 'class'"):
        savedmodel_write.write(tmp_path / "three", call, Signature((TensorSpec("class", "float32", (1,)),), ()))
    alike = tuple(TensorSpec(name, "float32", (1,)) for name in ("x.1", "x_1"))
    with pytest.raises(StepError, match=r"the inputs 'x\.1' and 'x_1' are one to TensorFlow"):
        savedmodel_write.write(tmp_path / "three", call, Signature(alike, ()))


def test_a_record_that_contradicts_the_file_does_not_count(tmp_path: Path) -> None:
    signature = Signature((TensorSpec("x", "float32", ("batch", 2)),), (TensorSpec("y", "float32", ("batch", 2)),))
    savedmodel_write.write(tmp_path / "model", lambda tensors: {"y": tensors["x"]}, signature)
    path = tmp_path / "model/saved_model.pb"
    for change in ({"dtype": "int32"}, {"shape": ["batch", 3]}, {"name": "z"}):
        data = signature.to_json()
        data["inputs"][0] |= change
        (path.parent / savedmodel.RECORD).write_text(json.dumps({"signature": data}))
        assert savedmodel.describe(path).inputs == (TensorSpec("x", "float32", ("x_0", 2)),)
    (path.parent / savedmodel.RECORD).write_text("{")
    assert savedmodel.describe(path).inputs == (TensorSpec("x", "float32", ("x_0", 2)),)


def test_outputs_that_are_not_as_promised(tmp_path: Path) -> None:
    ends = (TensorSpec("x", "float32", ("batch", 2)),), (TensorSpec("y", "int32", ("batch", 2)),)
    with pytest.raises(StepError, match=r"output 'y' came out as float32 with 2 axes, not as y: int32"):
        savedmodel_write.write(tmp_path, lambda tensors: {"y": tensors["x"]}, Signature(*ends))


def test_inputs_are_checked(plain: Path) -> None:
    with RUNNER.open(tf_kit.source(plain)) as session:
        with pytest.raises(DataError, match="is float64, the model takes float32"):
            session.infer({"x": X.astype(np.float64)})
        with pytest.raises(DataError, match="no input 'y'"):
            session.infer({"y": X})
    with pytest.raises(UnavailableError, match="on the CPU"), RUNNER.open(tf_kit.source(plain), device="cuda"):
        pass
    with pytest.raises(UnavailableError, match="cannot be asked for float64"):
        RUNNER.open(tf_kit.source(plain), precision="float64").__enter__()


def test_what_only_fails_when_it_runs(tmp_path: Path) -> None:
    tf = tf_core.load()
    made = tf_kit.operator(
        tmp_path / "model",
        lambda tensors: {"y": tf.gather(tf.zeros((3, 2)), tensors["ids"])},
        TensorSpec("ids", "int64", ("batch",)),
        outputs=[TensorSpec("y", "float32", ("batch", 2))],
    )
    with RUNNER.open(made) as session:
        with pytest.raises(StepError, match=r"TensorFlow cannot run the model on ids \[1\]: indices\[0\] = 7"):
            session.infer({"ids": np.array([7])})
        assert session.infer({"ids": np.array([2])})["y"].shape == (1, 2)


def test_strings_go_in(tmp_path: Path) -> None:
    tf = tf_core.load()
    made = tf_kit.operator(
        tmp_path / "model",
        lambda tensors: {"y": tf.strings.length(tensors["text"])},
        TensorSpec("text", "string", ("batch",)),
        outputs=[TensorSpec("y", "int32", ("batch",))],
    )
    with RUNNER.open(made) as session:
        for texts in (np.array(["a", "bcd"]), np.array([b"a", b"bcd"]), np.array(["a", "bcd"], object)):
            assert session.infer({"text": texts})["y"].tolist() == [1, 3]


def test_an_operator_nobody_knows(plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(plain.parent, folder)
    path = folder / "saved_model.pb"
    path.write_bytes(path.read_bytes().replace(b"MatMul", b"MatMuk"))
    with pytest.raises(SourceError, match="has the operator MatMuk, which this TensorFlow does not know"):
        RUNNER.open(tf_kit.source(path)).__enter__()


def test_a_delivery_is_what_tensorflow_serving_looks_for(plain: Path, tmp_path: Path) -> None:
    report = optkit.convert(
        plain.parent,
        to=["openvino"],
        out=tmp_path / "out",
        cache=tmp_path / "cache",
        inputs={"x": {"shape": ["batch", 3]}},
        dims={"batch": (1, 2, 4)},
    )
    assert report.exit_code == 0
    graph = tf_kit.frozen_graph(tmp_path / "graph.pb")
    recipe = {
        "version": 1, "name": "graph",
        "model": {"tf_graph": str(graph), "inputs": ["image:0"], "outputs": ["scores"]},
        "inputs": {"image": {"shape": ["batch", 6, 5, 3], "layout": "NHWC"}}, "dims": {"batch": {"max": 4}},
        "data": {"judge": {"random": 4}}, "check_on": "judge",
        "steps": [{"id": "saved", "to": "savedmodel"}],
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    report = optkit.convert(tmp_path / "recipe.yaml", out=tmp_path / "saved", cache=tmp_path / "cache")
    assert report.exit_code == 0
    folder = tmp_path / "saved/saved"
    assert (folder / "1/saved_model.pb").is_file()
    record = json.loads((folder / "optkit.json").read_text())
    assert record["main"] == "1/saved_model.pb"
    assert optkit.verify(folder)["held"]
    with optkit.open_artifact(folder) as model:
        assert model.signature.inputs[0] == TensorSpec("image", "float32", ("batch", 6, 5, 3), "NHWC")
        assert model(image=np.ones((2, 6, 5, 3), np.float32))["scores"].shape == (2, 4)
        with pytest.raises(DataError, match=r"shape \(2, 3, 6, 5\)") as caught:
            model(image=np.ones((2, 3, 6, 5), np.float32))
        assert caught.value.hint == "it looks like NCHW: give value.transpose(0, 2, 3, 1)"
    (folder / "1/saved_model.pb").write_bytes(b"other")
    assert not optkit.verify(folder)["held"]


def test_a_folder_counts_with_all_its_files(plain: Path, tmp_path: Path) -> None:
    from optkit.cache import Cache
    from optkit.models.opened import stub
    from optkit.models.sources import source_artifact

    def digest(section: dict[str, str]) -> str:
        artifact = source_artifact(stub(section), Cache(tmp_path / "cache"))
        assert isinstance(artifact, Artifact)
        return artifact.digest

    folder = tmp_path / "model"
    shutil.copytree(plain.parent, folder)
    first = digest({"savedmodel": str(folder)})
    assert first == digest({"savedmodel": str(plain.parent)})
    assert first != digest({"savedmodel": str(folder), "signature": "serving_default"})
    (folder / "README").write_text("not the model's")
    assert first == digest({"savedmodel": str(folder)})
    data = folder / "variables/variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[::-1])
    assert first != digest({"savedmodel": str(folder)})


def test_the_threads_asked_for_are_those_used(plain: Path) -> None:
    """In a process of its own: TensorFlow takes a number only until it first computes."""
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); import tf_kit; "
        "from optkit.runners.savedmodel_runner import RUNNER\n"
        "with RUNNER.open(tf_kit.source(Path(sys.argv[1])), threads=1) as session: print(session.provider)"
    )
    line = [sys.executable, "-c", script, str(plain), str(Path(__file__).parent)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "TensorFlow CPU, 1 thread"
