"""What the TensorFlow tests share: small models as files, artifacts of them, conversions compared with the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from optkit.artifact import Artifact, Dim, Signature, TensorSpec
from optkit.formats.tensorflow import core as tf_core
from optkit.formats.tensorflow import savedmodel, savedmodel_write
from optkit.plugin import Context
from optkit.registry import get_pass, get_runner
from optkit.tasks.making import reread
from optkit.testing import assert_pass_contract

DIMS = {"batch": Dim(1, 2, 5)}
IMAGE = TensorSpec("image", "float32", ("batch", 6, 5, 3), "NHWC")
OBJECTS = """
import keras

@keras.saving.register_keras_serializable(package="tests")
class Doubled(keras.layers.Layer):
    def call(self, x):
        return x * 2

class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(x)

OBJECTS = {"Doubled": Doubled, "Subclassed": Subclassed}
NUMBER = 3

def fails():
    raise ValueError("not today")
"""


def keras_models(folder: Path) -> Path:
    """A folder of `.keras` and `.h5` files, one for each thing that a model may be or lack."""
    keras = tf_core.keras()
    keras.utils.set_random_seed(0)
    layers = keras.layers
    with tf_core.quiet():
        image = keras.Input((6, 5, 3), name="image")
        hidden = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(image))
        pooled = layers.GlobalAveragePooling2D()(layers.ReLU()(hidden))
        keras.Model(image, layers.Dense(3, name="logits")(pooled)).save(folder / "cnn.keras")
        plain = keras.Sequential([keras.Input((6,)), layers.Dense(4, activation="relu"), layers.Dense(3)])
        plain.save(folder / "plain.h5")
        plain.save(folder / "plain.keras")
        plain.save_weights(folder / "plain.weights.h5")
        rates, ids = keras.Input((4,), name="rates"), keras.Input((None,), dtype="int64", name="ids")
        added = layers.Add(name="sum")([rates, layers.GlobalAveragePooling1D()(layers.Embedding(10, 4)(ids))])
        both = {"sum": added, "other": layers.Dense(2)(added)}
        keras.Model({"rates": rates, "ids": ids}, both).save(folder / "two.keras")
        keras.Sequential([keras.Input((5, 3)), layers.LSTM(4), layers.Dense(2, name="out")]).save(folder / "lstm.keras")
        text = keras.Input((), dtype="string", name="text")
        found = layers.Embedding(3, 2)(layers.StringLookup(vocabulary=["a", "b"])(text))
        keras.Model(text, layers.Dense(2, name="out")(found)).save(folder / "text.keras")
        keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x * 2)]).save(folder / "lambda.keras")
        unbuilt = keras.Sequential([layers.Dense(3)])
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has no weights is what it is for
            unbuilt.save(folder / "unbuilt.keras")
        (folder / "objects.py").write_text(OBJECTS)
        code: dict[str, Any] = {"__name__": "objects"}
        exec(OBJECTS, code)
        keras.Sequential([keras.Input((4,)), code["Doubled"]()]).save(folder / "doubled.keras")
        own = code["Subclassed"]()
        own(np.ones((1, 4), np.float32))
        own.save(folder / "own.keras")
        keras.saving.get_custom_objects().clear()
    return folder


def source(path: Path, **meta: Any) -> Artifact:
    """A `.keras`, `.h5` or `.pb` file as a source, or the SavedModel of a `saved_model.pb`."""
    kind = "savedmodel" if path.name == savedmodel.MAIN else "tf_graph" if path.suffix == ".pb" else "keras"
    files = savedmodel.files(path) if kind == "savedmodel" else (path.name,)
    return Artifact(kind, path, "d", get_runner(kind).describe(path, meta), files, meta)


def context(parent: Artifact, folder: Path, dims: Mapping[str, Dim] = DIMS) -> Context:
    assert parent.signature is not None
    (folder / "scratch").mkdir(parents=True)
    return Context(parent.signature.inputs, tuple(t.name for t in parent.signature.outputs), dims, folder / "scratch")


def converted(name: str, parent: Artifact, folder: Path, dims: Mapping[str, Dim] = DIMS, **options: Any) -> Artifact:
    """What a pass makes: re-read, confirmed, and answering as the parent does at every size of its dims."""
    use, given = get_pass(name), context(parent, folder, dims)
    asked, out = use.options.model_validate(options), folder / "out"
    out.mkdir()
    use.run(parent, out, asked, given)
    made = reread(use, parent, out, given)
    assert use.confirm is not None
    assert list(use.confirm(parent, made, asked, given)) == []
    assert_same(parent, made, dims)
    return made


def twice(name: str, parent: Artifact, folder: Path, dims: Mapping[str, Dim] = DIMS) -> Artifact:
    """What a pass makes, which keeps the contract: the same bytes the second time, among others."""
    made = assert_pass_contract(get_pass(name), parent, {}, {"dims": dims}, folder)
    assert_same(parent, made, dims)
    return made


def feeds(signature: Signature, dims: Mapping[str, Dim], end: int) -> dict[str, Any]:
    generator = np.random.default_rng(end)
    made: dict[str, Any] = {}
    for spec in signature.inputs:
        shape = spec.resolved({name: dim.sizes[min(end, len(dim.sizes) - 1)] for name, dim in dims.items()})
        wide = generator.integers(0, 5, shape) if "int" in spec.dtype else generator.standard_normal(shape)
        made[spec.name] = wide.astype(spec.dtype)
    return made


def assert_same(parent: Artifact, made: Artifact, dims: Mapping[str, Dim] = DIMS, tolerance: float = 1e-5) -> None:
    signature = parent.signature
    assert signature is not None
    with get_runner(parent.format).open(parent) as theirs, get_runner(made.format).open(made) as mine:
        for end in range(4):
            given = feeds(signature, dims, end)
            want, got = theirs.infer(dict(given)), mine.infer(dict(given))
            assert list(got) == list(want)
            for name, value in want.items():
                np.testing.assert_allclose(got[name], value, atol=tolerance, err_msg=f"{made.format} {name} {end}")


def saved(folder: Path, functions: Mapping[str, Sequence[str]] | None = None) -> Path:
    """A SavedModel as `tf.saved_model.save` leaves it: signature to its inputs' names, the first of them doubled."""
    tf = tf_core.load()
    module = tf.Module()
    module.weight = tf.Variable(np.arange(12, dtype=np.float32).reshape(3, 4) / 7)

    def made(names: Sequence[str]) -> Any:
        def call(*tensors: Any) -> dict[str, Any]:
            return {"y": tf.matmul(tensors[0], module.weight)}

        specs = [tf.TensorSpec([None, 3], name=name) for name in names]
        return tf.function(call, input_signature=specs, autograph=False).get_concrete_function()

    wanted = {"serving_default": ["x"]} if functions is None else functions
    with tf_core.quiet():
        tf.saved_model.save(module, str(folder), signatures={key: made(names) for key, names in wanted.items()})
    return folder / savedmodel.MAIN


def operator(folder: Path, call: Any, *inputs: TensorSpec, outputs: Sequence[TensorSpec]) -> Artifact:
    """A SavedModel of one function on named tensors."""
    signature = Signature(inputs, tuple(outputs))
    savedmodel_write.write(folder, call, signature)
    return replace(source(folder / savedmodel.MAIN), signature=signature)


def frozen_graph(path: Path) -> Path:
    """A frozen graph: "image" through "scores" to "best", with weights as constants."""
    tf = tf_core.load()
    weight = np.random.default_rng(0).standard_normal((90, 4)).astype(np.float32)
    graph = tf.Graph()
    with graph.as_default():
        image = tf.compat.v1.placeholder(tf.float32, (None, 6, 5, 3), name="image")
        flat = tf.reshape(image, (-1, 90))
        scores = tf.nn.softmax(tf.matmul(flat, tf.constant(weight)), name="scores")
        tf.argmax(scores, -1, name="head/best")
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return path
