"""onnx.to_openvino: what is converted, what is kept, and what is refused."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from openvino_models import DIMS, artifact, context, converted, infer, ov, weight

from optkit.artifact import Artifact, Dim, TensorSpec
from optkit.errors import StepError
from optkit.formats.openvino import model as openvino_model
from optkit.passes.onnx_to_openvino import PASS

IMAGE = TensorSpec("image", "float32", ("batch", 3, 16, 16), layout="NCHW")


def saved(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    *,
    shape: tuple[Any, ...] = ("batch", 3, 16, 16),
    outputs: dict[str, tuple[Any, ...]] | None = None,
    domain: str = "",
    **how: Any,
) -> Artifact:
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        for name, dims in (outputs or {"logits": ("batch", 10)}).items()
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        ends,
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path, **how)
    return Artifact("onnx", path, "", None, (path.name,))


def cnn(path: Path, **how: Any) -> Artifact:
    nodes = [
        helper.make_node("Conv", ["image", "kernel", "shift"], ["c"], name="conv", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"], name="act"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w", "b"], ["logits"], name="head"),
    ]
    weights = {"kernel": weight(8, 3, 3, 3), "shift": weight(8), "w": weight(8, 10), "b": weight(10)}
    return saved(path, nodes, weights, **how)


def test_converts_and_keeps_names_dims_and_weights(tmp_path: Path) -> None:
    source = cnn(tmp_path / "model.onnx")
    ctx = context(tmp_path, IMAGE, outputs=("logits",))
    made, notes = converted(PASS, source, tmp_path / "out", ctx)
    assert notes["bounded_dims"] == ["batch"]
    assert made.signature is not None
    assert [str(spec) for spec in made.signature.inputs] == ["image: float32[batch, 3, 16, 16]"]
    assert [str(spec) for spec in made.signature.outputs] == ["logits: float32[batch, 10]"]
    found = openvino_model.inspect(made.path)
    assert found["operators"] == {
        "Add": 2,
        "Convolution": 1,
        "MatMul": 1,
        "ReLU": 1,
        "ReduceMean": 1,
        "Reshape": 1,
    }
    assert found["weight_bytes"]["float32"] == 4 * (8 * 27 + 8 + 80 + 10)
    assert found["compressed"] == {}


@pytest.mark.parametrize("external", [False, True])
def test_gives_the_answers_of_onnxruntime(tmp_path: Path, external: bool) -> None:
    how = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 0} if external else {}
    source = cnn(tmp_path / "model.onnx", **how)
    made, _ = converted(PASS, source, tmp_path / "out", context(tmp_path, IMAGE, outputs=("logits",)))
    session = onnxruntime.InferenceSession(source.path, providers=["CPUExecutionProvider"])
    for batch in (1, 3, 16):
        image = np.random.default_rng(batch).standard_normal((batch, 3, 16, 16)).astype(np.float32)
        (wanted,) = session.run(None, {"image": image})
        # float32 sums of at most 64 terms in another order
        np.testing.assert_allclose(infer(made, {"image": image})["logits"], wanted, rtol=1e-5, atol=1e-6)


def test_bounds_are_written_where_they_do_no_harm(tmp_path: Path) -> None:
    source = cnn(tmp_path / "model.onnx")
    for name, options, dims, shape in (
        ("bounded", {}, DIMS, "1..16"),
        ("open", {"bound_dims": False}, DIMS, "?"),
        ("one size", {}, {"batch": Dim(4, 4, 4)}, "?"),
    ):
        ctx = context(tmp_path, IMAGE, outputs=("logits",))
        ctx = type(ctx)(ctx.inputs, ctx.outputs, dims, ctx.scratch)
        made, _ = converted(PASS, source, tmp_path / name, ctx, **options)
        assert f'shape="{shape},3,16,16"' in made.path.read_text()


def test_a_range_the_graph_cannot_take_is_left_open(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["image", "to"], ["logits"], name="fold")]
    source = saved(tmp_path / "model.onnx", nodes, {"to": np.array([2, -1])}, outputs={"logits": (2, None)})
    made, notes = converted(PASS, source, tmp_path / "out", context(tmp_path, IMAGE, outputs=("logits",)))
    text = made.path.read_text()
    assert ('shape="1..16,3,16,16"' in text) == bool(notes["bounded_dims"])
    assert infer(made, {"image": np.ones((2, 3, 16, 16), np.float32)})["logits"].shape == (2, 768)


def test_equal_sources_give_equal_files_in_one_process(tmp_path: Path) -> None:
    source = cnn(tmp_path / "model.onnx")
    ctx = context(tmp_path, IMAGE, outputs=("logits",))
    first, second = (converted(PASS, source, tmp_path / name, ctx)[0] for name in ("a", "b"))
    for name in first.files:
        assert (first.path.parent / name).read_bytes() == (second.path.parent / name).read_bytes()


def test_an_output_that_is_an_input_keeps_its_name(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["image"], ["act"]), helper.make_node("Identity", ["image"], ["same"])]
    shape = ("batch", 3, 16, 16)
    source = saved(tmp_path / "model.onnx", nodes, {}, outputs={"act": shape, "same": shape})
    made, _ = converted(PASS, source, tmp_path / "out", context(tmp_path, IMAGE, outputs=("act", "same")))
    image = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    found = infer(made, {"image": image})
    np.testing.assert_array_equal(found["same"], image)
    np.testing.assert_array_equal(found["act"], np.maximum(image, 0))


def test_names_operators_that_have_no_conversion_and_their_nodes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Frob", ["image"], ["a"], name="first", domain="com.acme"),
        helper.make_node("Frob", ["a"], ["b"], domain="com.acme"),
        helper.make_node("Det", ["b"], ["logits"], name="area"),
    ]
    source = saved(tmp_path / "model.onnx", nodes, {}, outputs={"logits": ("batch", 3)}, domain="com.acme")
    with pytest.raises(StepError) as caught:
        PASS.run(source, tmp_path, PASS.options(), context(tmp_path, IMAGE, outputs=("logits",)))
    assert "no conversion for" in caught.value.what
    assert "com.acme.Frob (node first, of b)" in caught.value.what
    assert "Det (node area)" in caught.value.what
    follower = [helper.make_node("Det", ["image"], ["d"], name="area"), helper.make_node("Gelu", ["d"], ["logits"])]
    follower[0].metadata_props.add(key="namespace", value="head.volume")
    source = saved(tmp_path / "second.onnx", follower, {}, outputs={"logits": ("batch", 3)})
    proto = onnx.load(source.path)
    proto.opset_import[0].version = 20
    onnx.save(proto, source.path)
    with pytest.raises(StepError) as caught:
        PASS.run(source, tmp_path, PASS.options(), context(tmp_path, IMAGE, outputs=("logits",)))
    assert caught.value.what == "OpenVINO has no conversion for Det (node area in the torch module head.volume)"
    assert caught.value.hint
    assert isinstance(caught.value.__cause__, Exception)


def test_a_conversion_that_fails_names_its_node(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["image"], ["logits"], name="no_shape")]
    source = saved(tmp_path / "model.onnx", nodes, {})
    with pytest.raises(StepError, match=r"failed to convert Reshape \(node no_shape\)"):
        PASS.run(source, tmp_path, PASS.options(), context(tmp_path, IMAGE, outputs=("logits",)))


@pytest.mark.parametrize(
    ("inputs", "outputs", "what"),
    [
        ((TensorSpec("imag", "float32", IMAGE.shape),), ("logits",), "no input 'imag'"),
        ((IMAGE,), ("logit",), "no output 'logit'"),
    ],
)
def test_names_that_are_not_in_the_file(
    tmp_path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[str, ...], what: str
) -> None:
    source = cnn(tmp_path / "model.onnx")
    with pytest.raises(StepError, match=what) as caught:
        PASS.run(source, tmp_path, PASS.options(), context(tmp_path, *inputs, outputs=outputs))
    assert "did you mean" in caught.value.hint


def test_a_declared_dim_that_is_static_in_the_file(tmp_path: Path) -> None:
    source = cnn(tmp_path / "model.onnx", shape=(2, 3, 16, 16), outputs={"logits": (2, 10)})
    with pytest.raises(StepError, match="axis 0 of input 'image' is fixed at 2"):
        PASS.run(source, tmp_path, PASS.options(), context(tmp_path, IMAGE, outputs=("logits",)))


def test_a_file_that_is_no_onnx(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    with pytest.raises(StepError, match=r"cannot convert model\.onnx"):
        PASS.run(Artifact("onnx", path, ""), tmp_path, PASS.options(), context(tmp_path, IMAGE, outputs=("logits",)))


def test_leaves_the_root_logger_alone_also_when_it_fails(tmp_path: Path) -> None:
    root = logging.getLogger()
    before = root.level, list(root.filters), list(root.handlers)
    for path in (cnn(tmp_path / "model.onnx").path, tmp_path / "absent.onnx"):
        out = tmp_path / path.stem
        out.mkdir()
        try:
            PASS.run(Artifact("onnx", path, ""), out, PASS.options(), context(tmp_path, IMAGE, outputs=("logits",)))
        except StepError:
            assert path.stem == "absent"
        assert (root.level, list(root.filters), list(root.handlers)) == before


@pytest.mark.parametrize(
    ("doctor", "what"),
    [
        ("half", "compressed to float16"),
        ("static", "axis 0 of input 'image' is fixed at 2, not 'batch'"),
        ("renamed", "input 'image' is not in the file, which has picture"),
        ("retyped", "input 'image' is float64, not float32"),
        ("outputs", "the outputs are logits, extra, not logits"),
    ],
)
def test_confirm_sees_a_doctored_file(tmp_path: Path, doctor: str, what: str) -> None:
    source = cnn(tmp_path / "model.onnx")
    ctx = context(tmp_path, IMAGE, outputs=("logits",))
    made, _ = converted(PASS, source, tmp_path / "out", ctx)
    model = ov.Core().read_model(made.path.read_text().encode(), made.path.with_suffix(".bin").read_bytes())
    if doctor == "static":
        model.reshape([2, 3, 16, 16])
    elif doctor == "renamed":
        openvino_model.rename(model, ["picture"], ["logits"])
    elif doctor == "retyped":
        steps = ov.preprocess.PrePostProcessor(model)
        steps.input().tensor().set_element_type(ov.Type.f64)
        model = steps.build()
    elif doctor == "outputs":
        extra = model.add_outputs("r")[0]
        extra.get_tensor().set_names({"extra"})
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    ov.save_model(model, made.path, compress_to_fp16=doctor == "half")
    assert PASS.confirm is not None
    complaints = PASS.confirm(source, artifact(tmp_path / "out"), PASS.options(), ctx)
    assert any(what in complaint for complaint in complaints), complaints


ALONE = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from openvino_models import IMAGE, cnn, context, converted, images, ov, written
from optkit.formats.openvino.model import quiet_conversion
from optkit.passes.openvino_quantize import PASS

class Data(type(images(1))):
    def feeds(self, batch):
        import {imported} as found  # a user's dataset may import what NNCF must not
        assert found.__spec__.origin != "hidden"
        return super().feeds(batch)

folder = Path({folder!r})
ctx = context(folder, IMAGE, outputs=("logits",), data=Data(images(1).make, 4))
with quiet_conversion():
    ov.convert_model(str(folder / "model.onnx"))
converted(PASS, written(cnn(), folder / "in", IMAGE), folder / "out", ctx)
assert "torch" not in sys.modules, "NNCF imported torch"
assert "openvino_telemetry" not in sys.modules
"""


def test_alone_it_imports_no_torch_and_leaves_nothing_at_home(tmp_path: Path) -> None:
    here = Path(__file__).parent
    home = tmp_path / "home"
    home.mkdir()
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path / "model.onnx")
    environment = {name: value for name, value in os.environ.items() if name not in {"CI", "PYTHONPATH"}}
    script = ALONE.format(path=[str(here), str(here.parents[1])], folder=str(tmp_path), imported="onnx")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=environment | {"HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(home.iterdir()) == []  # telemetry writes a client id there before it sends
