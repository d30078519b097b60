"""The ONNX runner and the files it reads: real onnxruntime, tiny models."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import FLOAT, cnn, encoder, images, model, node, saved, texts, value, weight

from optkit.artifact import Artifact, Signature, TensorSpec
from optkit.errors import DataError, SourceError, StepError, UnavailableError
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx import weights as onnx_weights
from optkit.runners.onnx_runner import RUNNER


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return saved(cnn(), tmp_path / "cnn")


# running


def test_infers_named_outputs(artifact: Artifact) -> None:
    image = images(1)[0]["image"][None]
    with RUNNER.open(artifact) as session:
        assert session.provider == "CPUExecutionProvider"
        one = session.infer({"image": image})
        three = session.infer({"image": np.repeat(image, 3, 0)})
    assert list(one) == ["logits"]
    assert one["logits"].shape == (1, 10)
    np.testing.assert_allclose(three["logits"], np.repeat(one["logits"], 3, 0), rtol=1e-5)


def test_external_data_gives_the_same(tmp_path: Path) -> None:
    feed = {name: array[None] for name, array in texts(1)[0].items()}
    results = []
    for external in (False, True):
        source = saved(encoder(), tmp_path / f"external-{external}", external=external)
        assert source.files == (("model.onnx", "model.onnx.data") if external else ("model.onnx",))
        with RUNNER.open(source, threads=2) as session:
            results.append(session.infer(feed)["pooled"])
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("feed", "what", "hint"),
    [
        ({}, "input 'image' is missing", "takes image; given: none"),
        ({"img": 0}, "no input 'img'", "did you mean 'image'?"),
        ({"image": np.zeros((1, 3, 16, 16))}, "is float64, the model takes float32", "astype('float32')"),
        ({"image": [[1.0]]}, "is a list, not an array", "numpy.asarray"),
        ({"image": np.zeros((3, 16, 16), np.float32)}, r"has 3 axes", "value[None]"),
        ({"image": np.zeros((1, 16, 16, 3), np.float32)}, "the model takes (batch, 3, 16, 16)",
         "looks like NHWC: give value.transpose(0, 3, 1, 2)"),
        ({"image": np.zeros((1, 3, 20, 16), np.float32)}, "has shape (1, 3, 20, 16)", "resize or pad"),
    ],
)  # fmt: skip
def test_refuses_what_does_not_fit(artifact: Artifact, feed: Any, what: str, hint: str) -> None:
    with RUNNER.open(artifact) as session, pytest.raises(DataError) as caught:
        session.infer(feed)
    assert what in caught.value.what
    assert hint in caught.value.hint
    assert caught.value.subject.startswith("inputs.")


def test_recognises_channels_first_for_a_channels_last_model(tmp_path: Path) -> None:
    proto = model([node("Relu", "x", "y")], [value("x", FLOAT, ["n", 8, 8, 3])], [value("y", FLOAT, None)], {})
    with RUNNER.open(saved(proto, tmp_path / "m")) as session, pytest.raises(DataError, match="looks like NCHW"):
        session.infer({"x": np.zeros((1, 3, 8, 8), np.float32)})


def test_a_stated_layout_silences_the_guess(artifact: Artifact) -> None:
    told = artifact.with_signature(Signature((TensorSpec("image", "float32", None, layout="CNHW"),), ()))
    with RUNNER.open(told) as session, pytest.raises(DataError, match="resize or pad"):
        session.infer({"image": np.zeros((1, 16, 16, 3), np.float32)})


@pytest.mark.parametrize(
    ("device", "what", "hint"),
    [
        ("cuda", "has no CUDAExecutionProvider here; it has .*CPUExecutionProvider", "device cpu"),
        ("cuda:1", "has no CUDAExecutionProvider", "device cpu"),
        ("cudo", "no device 'cudo'", "did you mean 'cuda'"),
        ("cpu:x", "'cpu:x' is not a device", "cpu:0"),
    ],
)
def test_devices_that_are_not_there(artifact: Artifact, device: str, what: str, hint: str) -> None:
    with pytest.raises(UnavailableError, match=what) as caught, RUNNER.open(artifact, device=device):
        pass
    assert hint in caught.value.hint


def test_precision_is_the_files_own(artifact: Artifact) -> None:
    with pytest.raises(UnavailableError, match="float64"), RUNNER.open(artifact, precision="float64"):
        pass


def test_a_failing_run_is_a_step_error(tmp_path: Path) -> None:
    proto = model([node("Reshape", "x shape", "y")], [value("x", FLOAT, ["n", "m"])], [value("y", FLOAT, None)],
                  {"shape": np.array([7, -1])})  # fmt: skip
    with RUNNER.open(saved(proto, tmp_path / "m")) as session, pytest.raises(StepError, match="onnxruntime"):
        session.infer({"x": np.zeros((2, 3), np.float32)})


def test_prints_nothing(artifact: Artifact) -> None:
    code = (
        "import sys, json, numpy as np\nfrom pathlib import Path\nfrom optkit.artifact import Artifact\n"
        "from optkit.runners.onnx_runner import RUNNER\n"
        "with RUNNER.open(Artifact('onnx', Path(sys.argv[1]), '')) as s:\n"
        "    s.infer({'image': np.zeros((1, 3, 16, 16), np.float32)})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(artifact.path)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


# files


def test_describes_names_dtypes_and_dims(tmp_path: Path) -> None:
    proto = model(
        [node("Cast", "x", "y", to=FLOAT), node("Identity", "z", "w")],
        [value("x", TensorProto.BOOL, [2, None]), value("z", TensorProto.FLOAT16, None), value("c", FLOAT, [1])],
        [value("y", FLOAT, [2, "n"]), value("w", TensorProto.FLOAT16, [])],
        {"c": np.ones(1, np.float32)},
    )
    assert RUNNER.describe(saved(proto, tmp_path / "m").path, {}) == Signature(
        (TensorSpec("x", "bool", (2, "x_1")), TensorSpec("z", "float16", None)),
        (TensorSpec("y", "float32", (2, "n")), TensorSpec("w", "float16", ())),
    )


def test_a_sequence_is_no_input(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("s", FLOAT, None)
    proto = model([node("SequenceLength", "s", "n")], [sequence], [value("n", TensorProto.INT64, [])], {})
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(SourceError, match="'s' is a sequence_type"):
        RUNNER.describe(tmp_path / "m.onnx", {})


def test_inspect_tells_what_is_inside(tmp_path: Path) -> None:
    found = RUNNER.inspect(saved(cnn(), tmp_path / "m", external=True).path)
    assert json.loads(json.dumps(found)) == found
    parameters = 16 * 27 + 16 + 16 * 144 + 16 + 160 + 10
    assert found["operators"] == {"Add": 1, "Conv": 2, "Flatten": 1, "Gemm": 1, "GlobalAveragePool": 1, "Relu": 2}
    assert (found["nodes"], found["parameters"], found["precision"]) == (8, parameters, "float32")
    assert (found["opset"], found["ir_version"], found["producer"]) == ({"ai.onnx": 20}, 10, "tests")
    assert (found["external_data"], found["portable"], found["quantised"]) == (["model.onnx.data"], True, {})
    assert found["weights"]["float32"] == {"tensors": 6, "parameters": parameters, "bytes": 4 * parameters}
    assert found["size_bytes"] > 4 * parameters


def test_inspect_counts_subgraphs_and_foreign_operators(tmp_path: Path) -> None:
    branches = [helper.make_graph([node(kind, "x", kind)], kind, [], [value(kind, FLOAT, None)])
                for kind in ("Relu", "Abs")]  # fmt: skip
    nodes = [node("If", "go", "y0", then_branch=branches[0], else_branch=branches[1]),
             helper.make_node("FastGelu", ["y0"], ["y"], domain="com.microsoft")]  # fmt: skip
    proto = model(nodes, [value("go", TensorProto.BOOL, []), value("x", FLOAT, ["n"])], [value("y", FLOAT, None)], {},
                  com_microsoft=1)  # fmt: skip
    found = RUNNER.inspect(saved(proto, tmp_path / "m").path)
    assert found["operators"] == {"Abs": 1, "If": 1, "Relu": 1, "com.microsoft.FastGelu": 1}
    assert found["portable"] is False


def test_a_missing_sidecar_is_named(tmp_path: Path) -> None:
    source = saved(cnn(), tmp_path / "m", external=True)
    (source.path.parent / "model.onnx.data").rename(tmp_path / "weights.data")
    for call in (onnx_model.files, lambda p: RUNNER.describe(p, {}), RUNNER.inspect):
        with pytest.raises(SourceError, match=r"'model\.onnx\.data', which is not beside it: it was left behind"):
            call(source.path)
    with pytest.raises(SourceError, match="left behind"), RUNNER.open(source):
        pass


def test_a_short_sidecar_is_named(tmp_path: Path) -> None:
    source = saved(cnn(), tmp_path / "m", external=True)
    sidecar = source.path.parent / "model.onnx.data"
    sidecar.write_bytes(sidecar.read_bytes()[:-4])
    with pytest.raises(SourceError, match="cut short or belongs to another model"):
        onnx_model.files(source.path)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "", "a/../../secret.bin", "C:\\x", "..\\x"])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(4096))
    proto = cnn()
    onnx_weights.refer(proto.graph.initializer[0], location, 0, 16 * 27 * 4)
    (tmp_path / "m").mkdir()
    path = tmp_path / "m" / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(SourceError, match="outside its own folder"):
        onnx_model.files(path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    source = saved(cnn(), tmp_path / "m", external=True)
    sidecar = source.path.parent / "model.onnx.data"
    sidecar.rename(tmp_path / "elsewhere")
    sidecar.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="outside its own folder"):
        onnx_model.files(source.path)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "an empty file"),
        (b"PK\x03\x04 a zip", "check what was downloaded"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"\x08", "check what was downloaded"),
        (cnn().SerializeToString()[:4000], "check what was downloaded"),
        (bytes(9 << 20), "check what was downloaded"),
    ],
)
def test_what_is_not_onnx(tmp_path: Path, content: bytes, hint: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        onnx_model.load(path)
    assert hint in caught.value.hint


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no ONNX file"):
        RUNNER.describe(tmp_path / "model.onnx", {})


def test_an_ir_version_from_the_future(tmp_path: Path) -> None:
    proto = cnn()
    proto.ir_version = onnx.IR_VERSION + 1
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(SourceError, match=f"IR version {onnx.IR_VERSION + 1}") as caught:
        RUNNER.describe(path, {})
    assert "lower ir_version" in caught.value.hint


def test_an_opset_from_before_the_runtime(tmp_path: Path) -> None:
    """It is refused with a command that mends it, and the command does."""
    old = model([node("Add", "x b", "y", broadcast=1)], [value("x", FLOAT, [2, 4])], [value("y", FLOAT, [2, 4])],
                {"b": weight(4)}, opset=6)  # fmt: skip
    feed = {"x": weight(2, 4, seed=1)}
    match = "of an opset before 7, .* Add means another thing since"
    with pytest.raises(SourceError, match=match) as caught, RUNNER.open(saved(old, tmp_path / "old")):
        pass
    assert "onnx.version_converter.convert_version(onnx.load(path), 17)" in caught.value.hint
    with RUNNER.open(saved(onnx.version_converter.convert_version(old, 17), tmp_path / "new")) as session:
        assert np.allclose(session.infer(feed)["y"], feed["x"] + weight(4))


def _opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = onnx.defs.onnx_opset_version() + 1


def _operator(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].op_type = "Nonsense"


def _weight(proto: onnx.ModelProto) -> None:
    del proto.graph.initializer[0]


def _twice(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].output[0] = "logits"


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (_opset, r"uses opset \d+, and the installed onnxruntime takes up to \d+"),
        (_operator, "refuses the graph of model.onnx: .*Nonsense"),
        (_weight, "refuses the graph of model.onnx: Invalid model. Node input 'w0'"),
        (_twice, "two values in model.onnx are called 'logits'"),
    ],
)
def test_a_broken_graph_is_the_sources_fault(tmp_path: Path, damage: Any, what: str) -> None:
    wrong = cnn()
    damage(wrong)
    with pytest.raises(SourceError, match=what), RUNNER.open(saved(wrong, tmp_path / "m")):
        pass


def test_shapes_in_external_data(tmp_path: Path) -> None:
    onnx.save(encoder(), tmp_path / "model.onnx", save_as_external_data=True, location="all.bin", size_threshold=0)
    outside = Artifact("onnx", tmp_path / "model.onnx", "")
    what = "keeps 'axis1', whose values shapes depend on, in external data"
    with pytest.raises(SourceError, match=what) as caught, RUNNER.open(outside):
        pass
    assert "size_threshold=1024" in caught.value.hint
    (tmp_path / "again").mkdir()
    model_again = onnx_model.load(tmp_path / "model.onnx", weights=False)
    again = onnx_model.save(model_again, tmp_path / "again", external=True, source=tmp_path)
    with RUNNER.open(Artifact("onnx", again, "")) as session:
        assert session.provider == "CPUExecutionProvider"


# large files


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A model over the size from which weights stay on disk, in both layouts."""
    wide = weight(1100, 2200)
    nodes = [node("MatMul", "x w", "h"), node("Add", "h b", "i"), node("MatMul", "i v", "y")]
    inner = helper.make_graph([node("Identity", "t", "u")], "g", [], [value("u", FLOAT, [600])],
                              [numpy_helper.from_array(weight(600), "t")])  # fmt: skip
    nodes.append(node("If", "go", "z", then_branch=inner, else_branch=inner))
    proto = model(nodes, [value("x", FLOAT, ["n", 1100]), value("go", TensorProto.BOOL, [])],
                  [value("y", FLOAT, ["n", 3]), value("z", FLOAT, [600])],
                  {"w": wide, "b": weight(2200), "v": weight(2200, 3), "s": np.array([1, 2])})  # fmt: skip
    folder = tmp_path_factory.mktemp("large")
    paths = {}
    for external in (False, True):
        (folder / str(external)).mkdir()
        paths[external] = onnx_model.save(proto, folder / str(external), external=external)
    return paths


@pytest.mark.parametrize("source", [False, True])
@pytest.mark.parametrize("target", [False, True])
def test_weights_stay_on_disk_and_are_copied_exactly(
    large: dict[bool, Path], source: bool, target: bool, tmp_path: Path
) -> None:
    path = large[source]
    lazy = onnx_model.load(path, weights=False)
    assert lazy.ByteSize() < 10_000
    assert onnx_model.size_bytes(lazy) > 9_000_000
    written = onnx_model.save(lazy, tmp_path, external=target, source=path.parent)
    assert onnx_model.files(written) == ("model.onnx", *(["model.onnx.data"] if target else []))
    onnx.checker.check_model(str(written), full_check=True)
    whole, copy = (onnx.load(p) for p in (large[False], written))
    assert copy == whole or [numpy_helper.to_array(t).tobytes() for t in copy.graph.initializer] == [
        numpy_helper.to_array(t).tobytes() for t in whole.graph.initializer
    ]
    assert [t.name for t in copy.graph.initializer] == ["w", "b", "v", "s"]
    feed = {"x": weight(2, 1100), "go": np.array(True)}
    results = []
    for p in (path, written):
        with RUNNER.open(Artifact("onnx", p, "")) as session:
            results.append(session.infer(feed))
    np.testing.assert_array_equal(results[0]["y"], results[1]["y"])
    np.testing.assert_array_equal(results[1]["z"], weight(600))


def test_a_whole_load_equals_onnx_load(large: dict[bool, Path]) -> None:
    for path in large.values():
        mine, theirs = onnx_model.load(path), onnx.load(path)
        assert [numpy_helper.to_array(t).tobytes() for t in mine.graph.initializer] == [
            numpy_helper.to_array(t).tobytes() for t in theirs.graph.initializer
        ]
        assert mine.graph.node[:3] == theirs.graph.node[:3]


def test_reading_one_tensor_maps_it(large: dict[bool, Path]) -> None:
    for path in large.values():
        tensor = onnx_model.load(path, weights=False).graph.initializer[0]
        values = onnx_weights.read(tensor, path.parent)
        assert isinstance(values, np.memmap)
        np.testing.assert_array_equal(values, weight(1100, 2200))


def test_types_numpy_lacks_survive(tmp_path: Path) -> None:
    import ml_dtypes

    tables = {"bf": weight(700).astype(ml_dtypes.bfloat16), "i4": np.ones(5001, ml_dtypes.int4),
              "text": np.array(["a", "b"], object)}  # fmt: skip
    proto = model([node("Relu", "x", "y")], [value("x", FLOAT, [1])], [value("y", FLOAT, [1])], tables)
    source = saved(proto, tmp_path / "external", external=True)
    (tmp_path / "back").mkdir()
    back = onnx_model.save(onnx_model.load(source.path, weights=False), tmp_path / "back", source=source.path.parent)
    for tensor, expected in zip(onnx_model.load(back).graph.initializer, tables.values(), strict=True):
        got = numpy_helper.to_array(tensor)
        assert got.dtype == expected.dtype or tensor.data_type == TensorProto.STRING
        assert [str(v) for v in got] == [str(v) for v in expected]
    assert "bfloat16" in RUNNER.inspect(source.path)["weights"]


def test_payloads_are_checked_and_one_file_has_a_limit(tmp_path: Path) -> None:
    proto = cnn()
    proto.graph.initializer.append(onnx_weights.placeholder("late", [600], np.dtype(np.float32)))
    with pytest.raises(ValueError, match="'late': 8 bytes for 2400"):
        onnx_model.save(proto, tmp_path, payloads={"late": lambda: np.zeros(2, np.float32)})
    proto.graph.initializer.append(onnx_weights.placeholder("huge", [1 << 30], np.dtype(np.float32)))
    with pytest.raises(StepError, match="ends at 2 GiB"):
        onnx_model.save(proto, tmp_path, external=False)


def test_artifacts_are_plain_data(artifact: Artifact) -> None:
    assert Artifact.from_json(json.loads(json.dumps(artifact.to_json()))) == dataclasses.replace(artifact)
    assert RUNNER.main == artifact.path.name
