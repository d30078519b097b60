"""Keras models: what a file says, what it may not do, and what becomes of it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_kit

from optkit.artifact import Dim, TensorSpec
from optkit.errors import RecipeError, SourceError, StepError, UnavailableError
from optkit.formats.tensorflow import core as tf_core
from optkit.models.opened import described
from optkit.passes.keras_to_savedmodel import PASS as TO_SAVEDMODEL
from optkit.runners.keras_runner import RUNNER

DIMS = tf_kit.DIMS
TWO = {**DIMS, "ids_1": Dim(2, 3, 6)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tf_kit.keras_models(tmp_path_factory.mktemp("keras"))


def texts(path: Path, **meta: Any) -> list[str]:
    signature = RUNNER.describe(path, meta)
    return [str(spec) for spec in (*signature.inputs, *signature.outputs)]


def declared(name: str, *shape: int | str, dtype: str = "float32") -> dict[str, Any]:
    return TensorSpec(name, dtype, shape).to_json()


def test_what_goes_in_and_comes_out(models: Path) -> None:
    assert texts(models / "cnn.keras") == ["image: float32[batch, 6, 5, 3]", "logits: float32[batch, 3]"]
    assert texts(models / "two.keras") == [
        "ids: int64[batch, ids_1]", "rates: float32[batch, 4]", "other: float32[batch, 2]", "sum: float32[batch, 4]",
    ]  # fmt: skip
    assert texts(models / "text.keras")[0] == "text: string[batch]"
    assert [text.partition(":")[2] for text in texts(models / "plain.h5")] == [
        " float32[batch, 6]",
        " float32[batch, 3]",
    ]


def test_names_that_keras_made_up_give_way_to_the_recipes(models: Path) -> None:
    wanted = {"inputs": [declared("rates", "batch", 6)], "outputs": ["scores"]}
    for name in ("plain.h5", "plain.keras"):
        assert texts(models / name, **wanted) == ["rates: float32[batch, 6]", "scores: float32[batch, 3]"]
    # Two inputs that the model itself has names for are not taken by their order.
    wanted = {"inputs": [declared("a", "batch", 4), declared("b", "batch", "n", dtype="int64")]}
    assert texts(models / "two.keras", **wanted)[0].startswith("ids:")


def test_inspect_needs_no_tensorflow(models: Path) -> None:
    about = RUNNER.inspect(models / "cnn.keras")
    assert about["kind"] == "Functional"
    assert about["operators"]["Conv2D"] == about["operators"]["Dense"] == 1
    assert RUNNER.inspect(models / "plain.h5")["operators"]["Dense"] == 2


def test_custom_objects(models: Path) -> None:
    objects = models / "objects.py"
    with pytest.raises(SourceError, match="uses Doubled, which Keras does not know") as caught:
        texts(models / "doubled.keras")
    assert "CUSTOM_OBJECTS = {'Doubled': Doubled}" in caught.value.hint
    for name in ("OBJECTS", "Doubled"):
        assert texts(models / "doubled.keras", custom_objects=f"{objects}:{name}")[1].endswith("float32[batch, 4]")
    for name, what in (
        ("OBJECT", "has no 'OBJECT'"),
        ("NUMBER", "is a int, not a mapping"),
        ("fails", r"raised ValueError: not today, at .*objects\.py:\d+ in fails"),
    ):
        with pytest.raises(SourceError, match=what) as caught:
            texts(models / "doubled.keras", custom_objects=f"{objects}:{name}")
        assert caught.value.subject == "model.custom_objects"
        assert caught.value.hint


def test_a_subclassed_model_needs_its_inputs_declared(models: Path, tmp_path: Path) -> None:
    objects = f"{models / 'objects.py'}:OBJECTS"
    with pytest.raises(SourceError, match="a subclassed model, which does not say what goes into it") as caught:
        texts(models / "own.keras", custom_objects=objects)
    assert "add `inputs:`" in caught.value.hint
    meta = {"custom_objects": objects, "inputs": [declared("x", "batch", 4)], "outputs": ["y"]}
    assert texts(models / "own.keras", **meta) == ["x: float32[batch, 4]", "y: float32[batch, 3]"]
    tf_kit.converted("keras.to_savedmodel", tf_kit.source(models / "own.keras", **meta), tmp_path)
    with pytest.raises(SourceError, match="calling Subclassed on the declared inputs raised ValueError") as caught:
        texts(models / "own.keras", **{**meta, "inputs": [declared("x", "batch", 7)]})
    assert caught.value.subject == "inputs"


def test_no_code_in_a_file_is_run(models: Path) -> None:
    with pytest.raises(SourceError, match="Lambda layer, whose Python code is in the file; optkit runs no code"):
        texts(models / "lambda.keras")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("plain.weights.h5", "holds weights alone, without the layers"),
        ("unbuilt.keras", "was saved before the model was built, so it has no weights"),
        ("absent.keras", "is not there"),
    ],
)
def test_files_that_lack_something(models: Path, name: str, what: str) -> None:
    with pytest.raises(SourceError, match=what) as caught:
        texts(models / name)
    assert caught.value.hint


def test_files_that_are_no_models(models: Path, tmp_path: Path) -> None:
    whole, h5 = (models / "cnn.keras").read_bytes(), (models / "plain.h5").read_bytes()
    for name, content, what in (
        ("m.keras", b"", r"is no \.keras file"),
        ("m.keras", b"not a model" * 9, r"is no \.keras file"),
        ("m.keras", h5, r"is no \.keras file, but a \.h5 one"),
        ("m.h5", whole, r"is no \.h5 file, but a \.keras one"),
        ("m.keras", whole[:-300], "is damaged"),
        ("m.h5", h5[: len(h5) // 2], "cannot be loaded: OSError"),
        ("m.keras", b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        ("m.bin", whole, "ends neither in"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match=what) as caught:
            texts(tmp_path / name)
        assert caught.value.hint


def test_a_file_cut_short_is_no_bug_of_the_inspection(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    path.write_bytes((models / "plain.h5").read_bytes()[:600])
    with pytest.raises(SourceError, match="is damaged"):
        RUNNER.inspect(path)


def test_weights_that_changed_are_found(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    whole = bytearray((models / "cnn.keras").read_bytes())
    with zipfile.ZipFile(models / "cnn.keras") as archive:
        place = archive.getinfo("model.weights.h5").header_offset + 4000
    whole[place] ^= 1
    path.write_bytes(whole)
    with pytest.raises(SourceError, match=r"the checksum of model\.weights\.h5 does not match"):
        texts(path)


def test_a_config_nobody_can_read(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(models / "plain.keras") as old, zipfile.ZipFile(path, "w") as new:
        for member in old.namelist():
            new.writestr(member, b"{" if member == "config.json" else old.read(member))
    with pytest.raises(SourceError, match="cannot be loaded: JSONDecodeError"):
        texts(path)
    with zipfile.ZipFile(path, "w") as new:
        new.writestr("metadata.json", "{}")
    with pytest.raises(SourceError, match=r"has no config\.json"):
        texts(path)


@pytest.mark.parametrize("name", ["keras.to_savedmodel", "keras.to_tflite", "keras.to_openvino"])
def test_two_inputs_and_two_outputs(name: str, models: Path, tmp_path: Path) -> None:
    made = tf_kit.twice(name, tf_kit.source(models / "two.keras"), tmp_path, TWO)
    assert made.signature is not None
    assert [spec.dtype for spec in made.signature.inputs] == ["int64", "float32"]


def test_a_recurrent_layer(models: Path, tmp_path: Path) -> None:
    parent = tf_kit.source(models / "lstm.keras")
    saved = tf_kit.twice("keras.to_savedmodel", parent, tmp_path / "saved")
    tf_kit.twice("savedmodel.to_onnx", saved, tmp_path / "onnx")
    tf_kit.twice("savedmodel.to_openvino", saved, tmp_path / "openvino")
    with pytest.raises(StepError, match=r"TensorListReserve \(node .*lstm.*\) needs sizes that are fixed") as caught:
        tf_kit.converted("savedmodel.to_tflite", saved, tmp_path / "lite")
    assert "convert its Keras file" in caught.value.hint
    tf_kit.twice("keras.to_tflite", parent, tmp_path / "keras")


def test_a_vocabulary_goes_along(models: Path, tmp_path: Path) -> None:
    parent = tf_kit.source(models / "text.keras")
    given, out = tf_kit.context(parent, tmp_path), tmp_path / "out"
    out.mkdir()
    TO_SAVEDMODEL.run(parent, out, TO_SAVEDMODEL.options(), given)
    feed = {"text": np.array(["b", "a", "other"])}
    with RUNNER.open(parent) as keras:
        want = keras.infer(dict(feed))
    from optkit.runners.savedmodel_runner import RUNNER as SAVED

    with SAVED.open(tf_kit.source(out / "saved_model.pb")) as saved:
        np.testing.assert_array_equal(saved.infer(dict(feed))["out"], want["out"])
    made = tf_kit.source(out / "saved_model.pb")
    with pytest.raises(StepError, match="'text' is a string"):
        tf_kit.converted("savedmodel.to_tflite", made, tmp_path / "lite")


def test_devices_and_precisions(models: Path) -> None:
    for options in ({"device": "cuda"}, {"precision": "float64"}):
        with pytest.raises(UnavailableError) as caught, RUNNER.open(tf_kit.source(models / "cnn.keras"), **options):
            pass
        assert caught.value.hint


def test_another_backend_in_this_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    keras = tf_core.keras()
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(UnavailableError, match="keras runs on jax in this process"):
        tf_core.keras()


def test_a_recipe_names_what_the_model_leaves_open(models: Path, tmp_path: Path) -> None:
    import optkit

    assert [str(t) for t in described({"keras": str(models / "cnn.keras")}).outputs] == ["logits: float32[batch, 3]"]
    recipe: dict[str, Any] = {
        "version": 1, "name": "plain", "model": {"keras": str(models / "plain.h5")},
        "inputs": {"rates": {"shape": ["batch", 6]}}, "outputs": ["scores"], "dims": {"batch": {"max": 4}},
        "data": {"judge": {"random": 4}}, "check_on": "judge",
        "steps": [{"id": "saved", "to": "savedmodel"}, {"id": "lite", "to": "tflite"}],
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    report = optkit.convert(path, out=tmp_path / "out", cache=tmp_path / "cache")
    assert report.exit_code == 0
    with optkit.open_artifact(tmp_path / "out/lite") as model:
        assert model(rates=np.ones((3, 6), np.float32))["scores"].shape == (3, 3)
    recipe["inputs"] = {"rates": {"shape": ["batch", 7]}}
    path.write_text(json.dumps(recipe))
    with pytest.raises(SourceError, match="axis 1: the model is fixed at 6, the recipe says 7"):
        optkit.convert(path, out=tmp_path / "out", cache=tmp_path / "cache")
    recipe |= {"inputs": {"rates": {"shape": ["batch", 6]}}, "model": {"keras": str(models / "absent.h5")}}
    path.write_text(json.dumps(recipe))
    with pytest.raises(RecipeError, match=r"model\.keras: there is no file"):
        optkit.convert(path, out=tmp_path / "out", cache=tmp_path / "cache")
