"""The TFLite runner: what it reads from files, how it composes and pads, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tflite_kit import IDS, IMAGE, MASK, converted, described, infer, rewritten, texts

import optkit
from optkit.artifact import Artifact, Signature, TensorSpec
from optkit.errors import DataError, SourceError, StepError, UnavailableError, UserError
from optkit.formats.tflite import model as tflite_model
from optkit.runners.tflite_runner import RUNNER


@pytest.fixture(scope="module")
def conv(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return converted(tmp_path_factory.mktemp("conv"), "Conv", IMAGE)[1]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return converted(tmp_path_factory.mktemp("text"), "Masked", IDS, MASK, sizes={"batch": [1, 4], "sequence": [6, 12]},
                     pad=["sequence"], int64="int32")[1]  # fmt: skip


def plain(artifact: Artifact, path: Path) -> Artifact:
    """The same file as another tool would leave it: without optkit's contract."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = tflite_model.read(artifact.path)
    model.metadata = []
    path.write_bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    return described(path)


def test_a_file_of_another_tool(conv: Artifact, tmp_path: Path) -> None:
    made = plain(conv, tmp_path / "other.tflite")
    assert made.signature is not None
    assert [str(s) for s in (*made.signature.inputs, *made.signature.outputs)] == [
        "image: float32[image_0, 3, 12, 10]", "output: float32[output_0, 4]"]  # fmt: skip
    feed = {"image": np.ones((3, 3, 12, 10), np.float32)}
    np.testing.assert_array_equal(infer(made, feed)["output"], infer(conv, feed)["output"])


def test_int64_over_int32_where_the_signature_says_so(text: Artifact, tmp_path: Path) -> None:
    made = plain(text, tmp_path / "other.tflite")
    assert made.signature is not None
    assert {s.dtype for s in made.signature.inputs} == {"int32"}
    feed = {name: np.stack([s[name] for s in texts(1)]) for name in ("input_ids", "attention_mask")}
    with pytest.raises(DataError, match="is int64, the model takes int32"):
        infer(made, feed)
    with optkit.open_artifact(made.path) as model:  # whoever calls it by hand need not care, while no value is lost
        narrow = {name: value.astype("int32") for name, value in feed.items()}
        np.testing.assert_array_equal(model(feed)["pooled"], model(narrow)["pooled"])
        with pytest.raises(UserError, match="'input_ids' has values that int32 cannot hold"):
            model({**feed, "input_ids": feed["input_ids"] + 2**40})
        with pytest.raises(UserError, match="is float64, the model takes int32"):
            model({**feed, "input_ids": feed["input_ids"] * 1.0})
    wide = Signature(tuple(replace(s, dtype="int64") for s in made.signature.inputs), made.signature.outputs)
    with RUNNER.open(replace(made, signature=wide)) as session:
        assert "input_ids int64 as int32" in session.provider
        assert session.infer(feed)["pooled"].shape == (1, 16)
        with pytest.raises(DataError, match="int32 cannot hold"):
            session.infer({**feed, "input_ids": feed["input_ids"] + 2**40})


def test_batches_are_put_together_and_lengths_padded(text: Artifact) -> None:
    feeds = {name: np.stack([s[name] for s in texts(9, length=7)]) for name in ("input_ids", "attention_mask")}
    whole = infer(text, feeds)
    assert whole["hidden"].shape == (9, 7, 16)
    for row in (0, 5, 8):
        one = infer(text, {name: value[row : row + 1] for name, value in feeds.items()})
        np.testing.assert_allclose(whole["hidden"][row], one["hidden"][0], atol=1e-5)
    with pytest.raises(DataError, match="holds it up to 12"):
        infer(text, {name: np.ones((1, 13), np.int64) for name in feeds})


def test_inspect(conv: Artifact, text: Artifact) -> None:
    about = RUNNER.inspect(conv.path)
    assert about["operators"]["CONV_2D"] == 2
    assert about["operator_versions"]["CONV_2D"] >= 1
    assert about["weights"]["float32"]["parameters"] == about["parameters"] == 3 * 8 * 9 + 8 + 8 * 8 * 9 + 8 + 8 * 4 + 4
    assert about["precision"] == "float32 100 %"
    assert about["quantised"] == {"tensors": 0, "per_channel": 0}
    assert about["size_bytes"] == conv.path.stat().st_size
    assert RUNNER.inspect(text.path)["fixed_sizes"] == {"batch": [1, 4], "sequence": [6, 12]}


@pytest.mark.parametrize(
    ("feed", "message", "hint"),
    [
        ({}, "'image' is missing", "takes image"),
        ({"picture": 0, "image": 0}, "no input 'picture'", "image"),
        ({"image": [1.0]}, "is a list", "asarray"),
        ({"image": np.zeros((1, 3, 12, 10))}, "is float64, the model takes float32", "astype"),
        ({"image": np.zeros((3, 12, 10), np.float32)}, "has 3 axes", r"value\[None\]"),
        ({"image": np.zeros((1, 12, 10, 3), np.float32)}, "has shape", r"NHWC: give value.transpose\(0, 3, 1, 2\)"),
        ({"image": np.zeros((1, 3, 9, 10), np.float32)}, "has shape", "resize or pad"),
    ],
)
def test_wrong_inputs(conv: Artifact, feed: Any, message: str, hint: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        infer(conv, feed)
    import re

    assert re.search(hint, caught.value.hint)


def test_sizes_that_disagree(text: Artifact) -> None:
    feed = {"input_ids": np.ones((2, 6), np.int64), "attention_mask": np.ones((2, 5), np.int64)}
    with pytest.raises(DataError, match="sequence is 5 in input 'attention_mask', but 6 in 'input_ids'"):
        infer(text, feed)


def test_devices_and_precisions(conv: Artifact) -> None:
    for options in ({"device": "cuda"}, {"precision": "float64"}):
        with pytest.raises(UnavailableError) as caught, RUNNER.open(conv, **options):
            pass
        assert caught.value.hint


def test_a_size_the_graph_refuses_leaves_the_session_usable(conv: Artifact, tmp_path: Path) -> None:
    def wider(model: Any, agreed: Any) -> Any:
        graph = model.subgraphs[0]
        graph.tensors[graph.inputs[0]].shapeSignature = [-1, 3, -1, 10]
        return replace(agreed, inputs=(TensorSpec("image", "float32", ("batch", 3, "height", 10)),))

    made = rewritten(conv, tmp_path / "wide.tflite", wider)
    with RUNNER.open(replace(made, signature=None)) as session:
        with pytest.raises(StepError, match=r"cannot run wide.tflite on image \[1, 3, 1, 10\]"):
            session.infer({"image": np.ones((1, 3, 1, 10), np.float32)})
        assert session.infer({"image": np.ones((2, 3, 12, 10), np.float32)})["output"].shape == (2, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty, and so is not a TFLite model"),
        (b"not a model at all, but long enough to have a head", "is not a TFLite model"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"\x20\x00\x00\x00TFL3" + b"\xff" * 200, "is damaged"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    for call in (lambda: RUNNER.describe(path, {}), lambda: RUNNER.inspect(path)):
        with pytest.raises(SourceError, match=message):
            call()


def test_a_file_cut_short(conv: Artifact, tmp_path: Path) -> None:
    whole = conv.path.read_bytes()
    for share in (0.3, 0.7, 0.99):
        path = tmp_path / "model.tflite"
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(SourceError, match="is damaged"):
            RUNNER.describe(path, {})
    with pytest.raises(SourceError, match="cannot be read"):
        RUNNER.describe(tmp_path / "missing.tflite", {})


FUZZ = """
import random, sys
from pathlib import Path
import numpy as np
from optkit.artifact import Artifact
from optkit.errors import OptkitError
from optkit.runners.tflite_runner import RUNNER

whole, path = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
rng, told = random.Random(0), 0
ends = [b"\\xff\\xff\\xff\\xff", b"\\xff\\xff\\xff\\x7f", b"\\0\\0\\0\\x80", b"\\0\\0\\0\\0"]
for number in range(200):
    data = bytearray(whole)
    if number % 4 == 0:
        data = data[: rng.randrange(len(data))]
    elif number % 4 == 1:
        for _ in range(rng.choice([1, 4, 32])):
            data[rng.randrange(len(data))] = rng.randrange(256)
    else:
        at = rng.randrange(8, len(data) - 4)
        data[at : at + 4] = rng.choice(ends)
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    print(number, flush=True)
    try:
        RUNNER.describe(path, {})
        RUNNER.inspect(path)
        with RUNNER.open(Artifact("tflite", path, "")) as session:
            session.infer({"image": np.zeros((2, 3, 12, 10), np.float32)})
    except OptkitError as error:
        assert error.hint, error
        told += 1
print("told", told)
"""


def test_damage_of_any_kind_is_told_and_crashes_nothing(conv: Artifact, tmp_path: Path) -> None:
    """200 files cut short or with changed bytes, in a child process, which lives to the end."""
    command = [sys.executable, "-c", FUZZ, str(conv.path), str(tmp_path / "model.tflite")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.returncode, done.stdout[-100:], done.stderr[-2000:])
    assert int(done.stdout.split()[-1]) > 60


def test_an_operator_of_another_litert(conv: Artifact, tmp_path: Path) -> None:
    def newer(model: Any, agreed: Any) -> None:
        for code in model.operatorCodes:
            code.version = 99

    made = rewritten(conv, tmp_path / "model.tflite", newer)
    match = r"has the operator \w+ \(version 99\), which the installed LiteRT"
    with pytest.raises(SourceError, match=match) as caught, RUNNER.open(made):
        pass
    assert "pip install -U ai-edge-litert" in caught.value.hint


def test_references_that_lead_nowhere(conv: Artifact, tmp_path: Path) -> None:
    def told(change: Any) -> str:
        made = rewritten(conv, tmp_path / "model.tflite", change)
        with pytest.raises(SourceError, match="is damaged") as caught:
            RUNNER.describe(made.path, {})
        assert caught.value.hint
        return caught.value.what

    def signature(model: Any, agreed: Any) -> None:
        model.signatureDefs[0].inputs[0].tensorIndex = 400

    def graph(model: Any, agreed: Any) -> None:
        model.signatureDefs[0].subgraphIndex = 7

    def operator(model: Any, agreed: Any) -> None:
        model.subgraphs[0].operators[0].opcodeIndex = 99

    def tensor(model: Any, agreed: Any) -> None:
        model.subgraphs[0].operators[0].inputs = [-5]

    def buffer(model: Any, agreed: Any) -> None:
        model.subgraphs[0].tensors[0].buffer = 1000

    assert "a signature names tensor 400 of" in told(signature)
    assert "a signature names graph 7 of 1" in told(graph)
    assert "names operator code 99 of" in told(operator)
    assert "names tensor -5 of" in told(tensor)
    assert "names a buffer that is not there" in told(buffer)


def test_a_file_without_a_signature(conv: Artifact, tmp_path: Path) -> None:
    def bare(model: Any, agreed: Any) -> None:
        model.signatureDefs = []

    made = rewritten(conv, tmp_path / "bare.tflite", bare)
    with pytest.raises(SourceError, match="has no signature"), RUNNER.open(made):
        pass
