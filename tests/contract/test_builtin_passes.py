"""Every built-in pass and runner keeps the contract that a plug-in author is held to."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optkit.artifact import Artifact, Dim, Signature, TensorSpec
from optkit.cache import Cache
from optkit.errors import NotHereError
from optkit.formats.tensorflow import core as tf_core
from optkit.models.sources import source_artifact
from optkit.plugin import Context
from optkit.recipe import Recipe, recipe_from
from optkit.registry import get_pass, get_runner, passes, runners
from optkit.testing import ListSamples, assert_pass_contract, assert_runner_contract

DIMS = {"batch": Dim(1, 4, 8)}
RNG = np.random.default_rng(0)
SAMPLES = ListSamples([{"image": RNG.standard_normal((3, 8, 8)).astype(np.float32)} for _ in range(8)])
FEEDS = {"image": RNG.standard_normal((4, 3, 8, 8)).astype(np.float32)}

NETS = Path(__file__).with_name("contract_net.py")

# Per built-in pass: its options, and whether it is fitted on data. A new pass needs a line here.
PASSES: dict[str, tuple[dict[str, Any], bool]] = {
    "torch.to_onnx": ({}, False),
    "torch.to_openvino": ({}, False),
    "torch.prune": ({"remove_macs": 0.2}, False),
    "torch.distill": ({"student": {"torch": f"{NETS}:plain"}, "epochs": 4, "lr": 0.01}, True),
    "torch.train": ({"call": f"{NETS}:train"}, True),
    "torch.qat": ({"epochs": 2}, True),
    "onnx.simplify": ({}, False),
    "onnx.optimize_transformer": ({}, False),
    "onnx.fp16": ({}, False),
    "onnx.quantize": ({}, True),
    "onnx.compress_weights": ({}, False),
    "onnx.to_openvino": ({}, False),
    "onnx.to_tensorrt": ({}, False),
    "openvino.fp16": ({}, False),
    "openvino.quantize": ({}, True),
    "openvino.compress_weights": ({}, False),
    "torch.to_tflite": ({}, False),
    "tflite.quantize": ({}, True),
    "tflite.to_openvino": ({}, False),
    "tflite.to_edgetpu": ({}, False),
    "onnx.to_tflite": ({}, False),
    "onnx.to_savedmodel": ({}, False),
    "keras.to_savedmodel": ({}, False),
    "keras.to_tflite": ({}, False),
    "keras.to_openvino": ({}, False),
    "savedmodel.to_tflite": ({}, False),
    "savedmodel.to_onnx": ({}, False),
    "savedmodel.to_openvino": ({}, False),
    "tf_graph.to_savedmodel": ({}, False),
    "tf_graph.to_onnx": ({}, False),
    "tf_graph.to_tflite": ({}, False),
    "tf_graph.to_openvino": ({}, False),
}


def source_of(factory: str, base: Path) -> Artifact:
    """A torch model at rest, as a run starts from it."""
    artifact = source_artifact(recipe_of({"torch": f"{NETS}:{factory}"}, base), Cache(base / "cache"))
    assert artifact is not None
    meta = {"dims": {"batch": DIMS["batch"].to_json()}}
    return replace(artifact, meta=meta, signature=get_runner("torch").describe(artifact.path, meta))


def tensorflow_source(model: dict[str, Any], base: Path) -> Artifact:
    """A Keras model or a frozen graph at rest."""
    recipe = recipe_of(model, base)
    artifact = source_artifact(recipe, Cache(base / "cache"))
    assert artifact is not None
    outputs = get_runner(artifact.format).describe(artifact.path, artifact.meta).outputs
    return replace(artifact, signature=Signature(recipe.inputs, tuple(replace(t, shape=("batch", 4)) for t in outputs)))


def recipe_of(model: dict[str, Any], base: Path) -> Recipe:
    """A recipe whose source takes an image and gives logits."""
    return recipe_from({
        "version": 1,
        "model": model,
        "inputs": {"image": {"shape": ["batch", 3, 8, 8], "layout": "NCHW"}},
        "outputs": ["logits"],
        "dims": {"batch": {"min": 1, "opt": 4, "max": 8}},
        "data": {"judge": {"random": 4}},
        "check_on": "judge",
        "steps": [{"id": "onnx", "to": "onnx"}],
    }, base)  # fmt: skip


def keras_file(path: Path) -> Path:
    keras = tf_core.keras()
    keras.utils.set_random_seed(0)
    layers = keras.layers
    with tf_core.quiet():
        keras.Sequential([
            keras.Input((3, 8, 8), name="image"), layers.Permute((2, 3, 1)), layers.Conv2D(4, 3, activation="relu"),
            layers.GlobalAveragePooling2D(), layers.Dense(4, name="logits"),
        ]).save(path)  # fmt: skip
    return path


def frozen_graph(path: Path) -> Path:
    tf = tf_core.load()
    weight = np.random.default_rng(0).standard_normal((192, 4)).astype(np.float32)
    graph = tf.Graph()
    with graph.as_default():
        image = tf.compat.v1.placeholder(tf.float32, (None, 3, 8, 8), name="image")
        tf.identity(tf.nn.relu(tf.matmul(tf.reshape(image, (-1, 192)), tf.constant(weight))), name="logits")
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return path


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A model in every built-in format; the TFLite one of convolutions alone, whose file keeps one resizable graph."""
    made = {"torch": source_of("build", tmp_path_factory.mktemp("source"))}
    plain = source_of("plain", tmp_path_factory.mktemp("plain"))
    for name in ("torch.to_onnx", "onnx.to_openvino", "torch.to_tflite"):
        use = get_pass(name)
        parent = plain if use.target == "tflite" else made[use.source]
        made[use.target] = step_made(name, parent, {}, tmp_path_factory.mktemp(name) / "made")
    base = tmp_path_factory.mktemp("tensorflow")
    made["savedmodel"] = step_made("onnx.to_savedmodel", made["onnx"], {}, base / "saved")
    made["keras"] = tensorflow_source({"keras": str(keras_file(base / "m.keras"))}, base / "keras")
    ends = {"inputs": ["image"], "outputs": ["logits"]}
    graph = {"tf_graph": str(frozen_graph(base / "m.pb")), **ends}
    made["tf_graph"] = tensorflow_source(graph, base / "graph")
    base = tmp_path_factory.mktemp("int8")
    fixed = step_made("torch.to_tflite", plain, {"sizes": {"batch": [1]}}, base / "fixed")
    made["tflite, int8"] = step_made("tflite.quantize", fixed, {"mode": "static", "io": "int8"}, base / "int8", SAMPLES)
    return made


def step_made(name: str, parent: Artifact, options: dict[str, Any], base: Path, data: Any = None) -> Artifact:
    """What a pass makes of a model."""
    from optkit.tasks.making import reread

    use = get_pass(name)
    base.mkdir()
    context = replace(context_of(parent, base), data=data)
    (base / "out").mkdir()
    use.run(parent, base / "out", use.options.model_validate(options), context)
    return reread(use, parent, base / "out", context)


def context_of(parent: Artifact, base: Path) -> Context:
    assert parent.signature is not None
    (base / "scratch").mkdir()
    outputs = tuple(t.name for t in parent.signature.outputs)
    return Context(parent.signature.inputs, outputs, DIMS, base / "scratch")


def test_every_builtin_pass_has_its_line() -> None:
    assert set(PASSES) == set(passes())


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.usefixtures("edgetpu_stand_in")  # for a compiler that cannot be installed: its report and file names alone
def test_a_pass(name: str, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    options, fitted = PASSES[name]
    use = get_pass(name)
    parent = artifacts["tflite, int8" if name == "tflite.to_edgetpu" else use.source]
    context = {
        "dims": DIMS,
        **({"data": SAMPLES} if fitted else {}),
        **({"source": parent} if use.needs_source else {}),
    }
    made = assert_pass_contract(use, parent, options, context, tmp_path)
    assert made.signature is not None
    assert made.signature.inputs[0] == TensorSpec("image", "float32", ("batch", 3, 8, 8), "NCHW")


@pytest.mark.parametrize("name", ["torch", "onnx", "openvino", "tflite", "savedmodel", "keras", "tf_graph"])
def test_a_runner(name: str, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    # A copy of its own: a backend's converter may keep the file it read mapped, which is not the runner's doing.
    shutil.copytree(artifacts[name].path.parent, tmp_path / "copy")
    artifact = replace(artifacts[name], path=tmp_path / "copy" / artifacts[name].path.name)
    assert_runner_contract(get_runner(name), artifact, FEEDS)


def test_every_builtin_runner_is_tested() -> None:
    assert set(runners()) == {
        "torch",
        "onnx",
        "openvino",
        "tflite",
        "tensorrt",
        "edgetpu",
        "savedmodel",
        "keras",
        "tf_graph",
    }


def test_an_engine_runs_or_says_which_machine_is_missing(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    made = assert_pass_contract(get_pass("onnx.to_tensorrt"), artifacts["onnx"], {}, {"dims": DIMS}, tmp_path)
    runner = get_runner("tensorrt")
    if runner.inspect(made.path)["runs_here"] == "yes":
        assert_runner_contract(runner, made, FEEDS, deterministic=False)
    else:
        with pytest.raises(NotHereError, match=r"the engine was built for .*; this machine is "):
            assert_runner_contract(runner, made, FEEDS)


def test_a_compiled_file_runs_or_says_what_is_missing(
    artifacts: dict[str, Artifact], tmp_path: Path, edgetpu_stand_in: Path
) -> None:
    made = assert_pass_contract(get_pass("tflite.to_edgetpu"), artifacts["tflite, int8"], {}, {"dims": DIMS}, tmp_path)
    with pytest.raises(NotHereError, match=r"an Edge TPU needs Coral's runtime, \S+, which this machine has not"):
        assert_runner_contract(get_runner("edgetpu"), made, FEEDS)


# --- the kit itself, on the toy plug-in: it must find what it is there to find


@pytest.fixture
def toy(toy_plugin: Path, tmp_path: Path) -> Artifact:
    weights = np.arange(12, dtype=float).reshape(4, 3) / 7
    (tmp_path / "source").mkdir()
    path = tmp_path / "source/model.toy"
    put, got = ({"name": n, "dtype": "float32", "shape": ["batch", s]} for n, s in (("x", 3), ("y", 4)))
    path.write_text(json.dumps({"weights": weights.tolist(), "input": put, "output": got}), encoding="utf-8")
    return Artifact("toy", path, "d", get_runner("toy").describe(path, {}), (path.name,))


X = {"x": RNG.standard_normal((4, 3)).astype(np.float32)}
TOY_CONTEXT = {"dims": DIMS, "data": ListSamples([{"x": x} for x in X["x"]])}


@pytest.mark.parametrize("name", ["toy.copy", "toy.half", "toy.round", "toy.to_toybin"])
def test_the_toy_passes(name: str, toy: Artifact, tmp_path: Path) -> None:
    made = assert_pass_contract(get_pass(name), toy, {}, TOY_CONTEXT, tmp_path)
    assert_runner_contract(get_runner(made.format), made, X)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("edits_input", "changed what lies beside its input"),
        ("no_notes", "not notes"),
        ("nan_notes", "not JSON compliant"),
        ("array_notes", "not JSON serializable"),
        ("writes_nothing", "without writing model.toy"),
        ("links", "wrote a link"),
        ("wrong_names", "outputs are called z"),
        ("wrong_dtypes", "is float64"),
        ("static_dims", "came out fixed at 8"),
        ("unkept", "does not confirm its own work"),
        ("odd_progress", "is no text"),
        ("random", "gave other bytes the second time"),
        ("wanders", "changed the working directory"),
        ("litters", "wrote outside its folder"),
    ],
)
def test_a_pass_that_breaks_the_contract_is_found(name: str, what: str, toy: Artifact, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=what):
        assert_pass_contract(get_pass(f"crashy.{name}"), toy, {}, TOY_CONTEXT, tmp_path)


def test_a_pass_that_needs_data_is_tested_with_data(toy: Artifact, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="needs data with these options"):
        assert_pass_contract(get_pass("toy.round"), toy, {}, {"dims": DIMS}, tmp_path)


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("keeps_buffer", "an answer changed when the next was given"),
        ("takes_unknown", "an unknown input: nothing was said"),
        ("takes_any_dtype", "as float16: nothing was said|as int16: nothing was said|as float64: nothing was said"),
        ("takes_any_shape", "nothing was said"),
        ("raises_plain", "none of optkit's own errors"),
        ("renames", "the answer is named z, described as y"),
        ("not_finite", "not finite"),
        ("never_closes", "is still open"),
        ("any_device", "an unknown device: nothing was said"),
    ],
)
def test_a_runner_that_breaks_the_contract_is_found(fault: str, what: str, toy: Artifact) -> None:
    from faulty_runner import faulty

    with pytest.raises(AssertionError, match=what):
        assert_runner_contract(faulty(fault), toy, X)
