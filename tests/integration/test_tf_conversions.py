"""SavedModels and frozen graphs to TFLite, ONNX and OpenVINO: what comes out, and what is refused by which name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_kit

from optkit.artifact import Artifact, Dim, TensorSpec
from optkit.drafting.shorthand import model_section
from optkit.errors import RecipeError, SourceError, StepError
from optkit.formats.onnx import model as onnx_model
from optkit.formats.tensorflow import core as tf_core
from optkit.formats.tflite import look as tflite_look
from optkit.formats.tflite import model as tflite_model
from optkit.passes.savedmodel_to_onnx import PASS as TO_ONNX
from optkit.passes.savedmodel_to_tflite import PASS as TO_TFLITE
from optkit.passes.tflite_quantize import PASS as QUANTIZE
from optkit.passes.tflite_quantize import TfliteQuantize
from optkit.registry import route
from optkit.runners.tf_graph_runner import RUNNER as GRAPHS
from optkit.runners.tflite_runner import RUNNER as LITE
from optkit.testing import ListSamples

ENDS = {"inputs": ["image"], "outputs": ["scores", "head/best"]}
DIMS = {"image_0": Dim(1, 2, 5)}
X = TensorSpec("x", "float32", ("batch", 4))
Y = TensorSpec("y", "float32", ("batch", 4))


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A Keras CNN as a SavedModel, channels last."""
    models = tf_kit.keras_models(tmp_path_factory.mktemp("keras"))
    parent = tf_kit.source(models / "cnn.keras")
    assert parent.signature is not None
    parent = replace(parent, signature=replace(parent.signature, inputs=(tf_kit.IMAGE,)))
    return tf_kit.converted("keras.to_savedmodel", parent, tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tf_kit.frozen_graph(tmp_path_factory.mktemp("graph") / "graph.pb")


# --- what comes out


@pytest.mark.parametrize("name", ["savedmodel.to_tflite", "savedmodel.to_onnx", "savedmodel.to_openvino"])
def test_names_dims_and_layout_are_kept(name: str, cnn: Artifact, tmp_path: Path) -> None:
    made = tf_kit.twice(name, cnn, tmp_path)
    assert made.signature is not None
    assert made.signature.inputs == (tf_kit.IMAGE,)
    assert [str(spec) for spec in made.signature.outputs] == ["logits: float32[batch, 3]"]


def test_a_file_with_channels_first_for_a_model_with_channels_last(cnn: Artifact, tmp_path: Path) -> None:
    """layout: NHWC is about inputs declared with channels first; there is none here."""
    with pytest.raises(StepError, match="no input is declared with layout: NCHW"):
        tf_kit.converted("savedmodel.to_tflite", cnn, tmp_path, layout="NHWC")


def test_channels_last_in_the_file(tmp_path: Path) -> None:
    image = TensorSpec("image", "float32", ("batch", 2, 5, 6), "NCHW")
    tf = tf_core.load()
    parent = tf_kit.operator(
        tmp_path / "model",
        lambda tensors: {"map": tf.nn.relu(tensors["image"]) * tf.reshape(tf.constant([1.0, 2.0]), (1, 2, 1, 1))},
        image,
        outputs=[TensorSpec("map", "float32", ("batch", 2, 5, 6))],
    )
    made = tf_kit.converted(
        "savedmodel.to_tflite", parent, tmp_path / "lite", layout="NHWC", channels_last_outputs=["map"]
    )
    held = tflite_look.inspect(made.path)["signatures"]["serving_default"]
    assert held["inputs"]["image"]["shape"][1:] == [5, 6, 2]
    assert held["outputs"]["map"]["shape"][1:] == [5, 6, 2]
    assert made.signature is not None
    assert made.signature.inputs == (image,)


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_file_from_tensorflow_is_quantised(mode: str, cnn: Artifact, tmp_path: Path) -> None:
    lite = tf_kit.converted("savedmodel.to_tflite", cnn, tmp_path / "lite")
    generator = np.random.default_rng(0)
    samples = [{"image": generator.standard_normal((6, 5, 3)).astype(np.float32)} for _ in range(8)]
    given = replace(tf_kit.context(lite, tmp_path / "int8"), data=ListSamples(samples) if mode == "static" else None)
    (tmp_path / "int8/out").mkdir()
    asked = TfliteQuantize.model_validate({"mode": mode})
    QUANTIZE.run(lite, tmp_path / "int8/out", asked, given)
    path = tmp_path / "int8/out/model.tflite"
    made = Artifact("tflite", path, "", LITE.describe(path, {}), (path.name,))
    assert made.signature == lite.signature
    assert tflite_look.counts(tflite_model.read(path))["weights"] > 0
    tf_kit.assert_same(cnn, made, tolerance=0.2)


def test_a_tflite_file_goes_on_to_openvino(cnn: Artifact, tmp_path: Path) -> None:
    lite = tf_kit.converted("savedmodel.to_tflite", cnn, tmp_path / "lite")
    tf_kit.converted("tflite.to_openvino", lite, tmp_path / "ir")


def test_the_opset_is_what_was_asked_for(cnn: Artifact, tmp_path: Path) -> None:
    made = tf_kit.converted("savedmodel.to_onnx", cnn, tmp_path, opset=15)
    model = onnx_model.load(made.path)
    assert onnx_model.opset(model) == 15
    assert (model.producer_name, model.ir_version) == ("tensorflow", 10)
    complaints = TO_ONNX.confirm and TO_ONNX.confirm(cnn, made, TO_ONNX.options(), tf_kit.context(cnn, tmp_path / "c"))
    assert complaints == ["opset 18 was asked for, the file has 15"]


def test_integers_keep_their_width(tmp_path: Path) -> None:
    tf = tf_core.load()
    ids = TensorSpec("ids", "int64", ("batch", "length"))
    table = np.arange(40, dtype=np.float32).reshape(10, 4)

    def call(tensors: Any) -> dict[str, Any]:
        return {"mean": tf.reduce_mean(tf.gather(table, tensors["ids"]), 1), "first": tensors["ids"][:, 0]}

    ends = [TensorSpec("mean", "float32", ("batch", 4)), TensorSpec("first", "int64", ("batch",))]
    parent = tf_kit.operator(tmp_path / "model", call, ids, outputs=ends)
    dims = {**tf_kit.DIMS, "length": Dim(2, 3, 6)}
    for name in ("savedmodel.to_tflite", "savedmodel.to_onnx", "savedmodel.to_openvino"):
        made = tf_kit.converted(name, parent, tmp_path / name, dims)
        assert made.signature is not None
        assert [spec.dtype for spec in (*made.signature.inputs, *made.signature.outputs)] == [
            "int64",
            "float32",
            "int64",
        ]


# --- what is refused


def test_operators_that_a_target_lacks_are_named(tmp_path: Path) -> None:
    tf = tf_core.load()
    parent = tf_kit.operator(
        tmp_path / "model", lambda t: {"y": tf.math.bessel_i0e(t["x"], name="strange")}, X, outputs=[Y]
    )
    for name, what in (
        ("savedmodel.to_onnx", r"ONNX has no equivalent for TensorFlow's BesselI0e \(node .*strange"),
        ("savedmodel.to_tflite", r"TFLite has no BesselI0e \(node .*strange"),
        ("savedmodel.to_openvino", r"OpenVINO has no conversion for BesselI0e \(node .*strange"),
    ):
        with pytest.raises(StepError, match=what) as caught:
            tf_kit.converted(name, parent, tmp_path / name)
        assert caught.value.hint


def test_flex_operators_only_where_asked_for(tmp_path: Path) -> None:
    tf = tf_core.load()

    def roots(tensors: Any) -> Any:
        return {"y": tf.linalg.diag_part(tf.linalg.cholesky(tf.linalg.diag(tf.abs(tensors["x"]))))}

    parent = tf_kit.operator(tmp_path / "model", roots, X, outputs=[Y])
    given, asked = tf_kit.context(parent, tmp_path / "lite"), TO_TFLITE.options.model_validate({"select_tf_ops": True})
    out = tmp_path / "lite/out"
    out.mkdir()
    notes = TO_TFLITE.run(parent, out, asked, given)
    assert notes["operators"]["FlexCholesky"] == 1


# --- frozen graphs


def test_a_frozen_graph_runs(graph: Path) -> None:
    made = tf_kit.source(graph, **ENDS)
    assert made.signature is not None
    assert [str(spec) for spec in (*made.signature.inputs, *made.signature.outputs)] == [
        "image: float32[image_0, 6, 5, 3]", "scores: float32[scores_0, 4]", "head/best: int64[head/best_0]",
    ]  # fmt: skip
    with GRAPHS.open(made) as session:
        answer = session.infer({"image": np.ones((2, 6, 5, 3), np.float32)})
    np.testing.assert_allclose(answer["scores"].sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("target", ["savedmodel", "onnx", "openvino", "tflite"])
def test_a_frozen_graph_is_converted(target: str, graph: Path, tmp_path: Path) -> None:
    (use,) = route("tf_graph", target)
    parent = tf_kit.source(graph, **ENDS)
    assert parent.signature is not None
    batch = [
        replace(s, shape=("batch", *(s.shape or ())[1:])) for s in (*parent.signature.inputs, *parent.signature.outputs)
    ]
    parent = replace(parent, signature=replace(parent.signature, inputs=(batch[0],), outputs=tuple(batch[1:])))
    made = tf_kit.twice(use.name, parent, tmp_path)
    assert made.signature is not None
    assert [spec.name for spec in made.signature.outputs] == ["scores", "head/best"]


def test_a_graph_is_cut_where_it_is_asked_for(graph: Path) -> None:
    made = tf_kit.source(graph, inputs=["Reshape:0"], outputs=["scores:0"])
    assert made.signature is not None
    assert [str(spec) for spec in made.signature.inputs] == ["Reshape:0: float32[Reshape:0_0, 90]"]
    with GRAPHS.open(made) as session:
        assert session.infer({"Reshape:0": np.ones((2, 90), np.float32)})["scores:0"].shape == (2, 4)


@pytest.mark.parametrize(
    ("meta", "subject", "what", "hint"),
    [
        ({}, "model.inputs", "what its inputs are; in graph.pb they might be image",
         "add to model: inputs: [image] and outputs: [head/best]"),
        ({"inputs": ["image"]}, "model.outputs", "they might be head/best", "add to model"),
        ({"inputs": ["imag"], "outputs": ["scores"]}, "model.inputs", "no tensor 'imag'", "did you mean 'image'?"),
        ({"inputs": ["image"], "outputs": ["score"]}, "model.outputs", "no tensor 'score'", "did you mean 'scores'?"),
        ({"inputs": ["image"], "outputs": ["scores:7"]}, "model.tf_graph", "cannot be made into a function", "check"),
    ],
)  # fmt: skip
def test_ends_that_a_graph_lacks(graph: Path, meta: Any, subject: str, what: str, hint: str) -> None:
    with pytest.raises(SourceError, match=what) as caught:
        GRAPHS.describe(graph, meta)
    assert caught.value.subject == subject
    assert caught.value.hint.startswith(hint)


def test_files_that_are_no_frozen_graphs(graph: Path, tmp_path: Path) -> None:
    path = tmp_path / "graph.pb"
    for content, what in (
        (b"", "is empty"),
        (b"node { name: 'x' op: 'Placeholder' }", "is a protobuf message in text form, and this takes the binary form"),
        (graph.read_bytes()[:-40], "no frozen TensorFlow graph, or damaged"),
        (tf_kit.saved(tmp_path / "saved").read_bytes(), "the main file of a SavedModel, not a frozen graph"),
    ):
        path.write_bytes(content)
        with pytest.raises(SourceError, match=what):
            GRAPHS.describe(path, ENDS)
    tf = tf_core.load()
    live = tf.Graph()
    with live.as_default():
        tf.compat.v1.get_variable("weight", (2, 2), use_resource=True)
    path.write_bytes(live.as_graph_def().SerializeToString())
    with pytest.raises(SourceError, match="is not frozen: 'weight' is a variable"):
        GRAPHS.describe(path, ENDS)


def test_a_graph_in_a_recipe(graph: Path, tmp_path: Path) -> None:
    import optkit
    from optkit.cli.inspect import look
    from optkit.drafting.init import write

    assert model_section(str(graph)) == {"tf_graph": str(graph)}
    assert look(graph)["inputs_may_be"] == ["image"]
    text = write(str(graph), tmp_path)
    assert "inputs: [image]" in text
    assert "outputs: [head/best]" in text
    recipe = {
        "version": 1, "model": {"tf_graph": str(graph), **ENDS}, "inputs": {"image": {"shape": ["batch", 6, 5, 3]}},
        "dims": {"batch": {"max": 4}}, "data": {"judge": {"random": 4}}, "check_on": "judge",
        "steps": [{"id": "onnx", "to": "onnx"}],
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    assert optkit.convert(path, out=tmp_path / "out", cache=tmp_path / "cache").exit_code == 0
    path.write_text(json.dumps({**recipe, "model": {"tf_graph": str(graph), "inputs": "image"}}))
    with pytest.raises(RecipeError, match=r"model\.inputs"):
        optkit.convert(path, out=tmp_path / "out", cache=tmp_path / "cache")
