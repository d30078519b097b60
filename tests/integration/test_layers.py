"""The layer that is to blame, in models broken on purpose at one known place, on the real runtimes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_models
import pytest
from click.testing import CliRunner
from layers_kit import IMAGES, look
from onnx import TensorProto, numpy_helper
from onnx_models import FLOAT, cnn, edited, encoder, feed_of, images, node, saved, texts, value, weight

import optkit
from optkit.artifact import Artifact
from optkit.cli.summary import wrongs
from optkit.parity import layers
from optkit.passes.onnx_fp16 import PASS as FP16
from optkit.passes.onnx_quantize import PASS as QUANTIZE
from optkit.registry import get_runner
from optkit.reports import html, junit, markdown
from optkit.reports.layers import sentence
from optkit.reports.remedies import remedy
from optkit.testing import ListSamples

if TYPE_CHECKING:
    from optkit.plugin import Tensors


def constants(change: dict[str, Callable[[Any], Any]]) -> Callable[[Any], None]:
    """An edit of a ModelProto's initializers."""

    def edit(proto: Any) -> None:
        for tensor in proto.graph.initializer:
            if tensor.name in change:
                tensor.CopyFrom(
                    numpy_helper.from_array(change[tensor.name](numpy_helper.to_array(tensor)), tensor.name)
                )

    return edit


THIRD = (np.arange(16) == 3)[:, None, None, None]
OUTLIER = constants({
    "w0": lambda w: np.where(THIRD, 0, w), "b0": lambda b: np.where(THIRD[:, 0, 0, 0], 0, b),
    "w1": lambda w: np.where(THIRD.reshape(1, 16, 1, 1), 90, w),
})  # fmt: skip
"""A channel that is never there: in float its weight in conv1 does nothing, in int8 it takes the whole range."""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return saved(cnn(), tmp_path_factory.mktemp("net") / "source")


def test_a_changed_weight_is_found_and_what_follows_it_is_not_blamed(net: Artifact, tmp_path: Path) -> None:
    def other(w: Any) -> Any:
        return w + (np.arange(w.size).reshape(w.shape) == 7) * np.float32(0.8)

    found = look(net, edited(net, tmp_path / "changed", constants({"w1": other})), IMAGES)
    blamed = found["blamed"]
    assert (blamed["tensor"], blamed["operator"], blamed["node"]) == ("c1", "Conv", "conv1")
    assert (blamed["before_db"], blamed["nonfinite"], blamed["estimated"]) == (300, False, False)
    assert blamed["after_db"] == blamed["local_db"] < 40
    assert blamed["alone_db"] == pytest.approx(found["output_db"], abs=0.1)
    rest = [layer for layer in found["layers"] if layer["tensor"] != "c1"]
    assert all(layer["local_db"] > 120 for layer in rest), "the error passes through the others unchanged"
    assert found["worst"] == [[layer["tensor"] for layer in found["layers"]].index("c1")]
    assert "the error comes from Conv conv1: exact before it" in sentence(found)


@pytest.mark.parametrize("kind", ["the same file", "renamed nodes", "another opset"])
def test_no_layer_is_blamed_where_the_artifact_is_equal(kind: str, net: Artifact, tmp_path: Path) -> None:
    def rename(proto: Any) -> None:
        for number, op in enumerate(proto.graph.node):
            op.name = f"n{number}"

    same = {"the same file": lambda: net, "renamed nodes": lambda: edited(net, tmp_path / "named", rename),
            "another opset": lambda: saved(cnn(17), tmp_path / "older")}[kind]()  # fmt: skip
    found = look(net, same, IMAGES)
    assert (found["blamed"], found["worst"], found["output_db"]) == (None, [], 300)
    assert found["compared"] == len(found["layers"]) == 8
    assert sentence(found).startswith("no layer is to blame")


def test_an_operator_that_amplifies_an_older_error_is_not_blamed(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x a", "h", "first"), node("Mul", "h big", "loud"), node("MatMul", "loud b", "k", "second"),
             node("Exp", "k", "e"), node("ReduceSum", "e last", "s", keepdims=1), node("Div", "e s", "y")]  # fmt: skip
    proto = onnx_models.model(
        nodes, [value("x", FLOAT, ["batch", 8])], [value("y", FLOAT, ["batch", 6])],
        {"a": weight(8, 8), "big": 6.0, "b": weight(8, 6), "last": np.array([1])},
    )  # fmt: skip
    source = saved(proto, tmp_path / "source")
    rounded = edited(source, tmp_path / "rounded", constants({"a": lambda w: w.astype(np.float16).astype(np.float32)}))
    feeds = [{"x": np.random.default_rng(n).standard_normal((1, 8)).astype(np.float32)} for n in range(3)]
    found = look(source, rounded, feeds)
    by = {layer["tensor"]: layer for layer in found["layers"]}
    assert by["e"]["after_db"] < by["h"]["after_db"] - 3, "the error looks larger behind the exponential"
    assert found["blamed"]["node"] == "first"


def test_int8_with_an_outlier_in_one_weight(net: Artifact, tmp_path: Path) -> None:
    source = edited(net, tmp_path / "source", OUTLIER)
    made, _, complaints = onnx_models.made(QUANTIZE, source, tmp_path, ListSamples(images(8)))
    assert not complaints
    found = look(source, made, IMAGES)
    blamed = found["blamed"]
    assert (blamed["operator"], blamed["node"]) == ("Conv", "conv1")
    assert blamed["after_db"] < 12 < blamed["before_db"]
    assert all(layer["local_db"] > 25 for layer in found["layers"] if layer["node"] != "conv1")


def without_copies(proto: Any) -> None:
    """Take away what keeps onnxruntime from quantising layers that were left out, as in other tools' files."""
    copies = {op.output[0]: op.input[0] for op in proto.graph.node if op.op_type == "Sum" and len(op.input) == 1}
    assert copies
    for op in proto.graph.node:
        op.input[:] = [copies.get(name, name) for name in op.input]
    kept = [op for op in proto.graph.node if op.output[0] not in copies]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)


def test_what_the_runtime_does_to_a_layer_among_others_is_told_from_the_layer(net: Artifact, tmp_path: Path) -> None:
    """onnxruntime quantises the weight of a Conv that was left in float, where what it reads and gives is quantised."""
    source = edited(net, tmp_path / "source", OUTLIER)
    shielded, _, _ = onnx_models.made(QUANTIZE, source, tmp_path, ListSamples(images(8)), exclude=("conv1",))
    made = edited(shielded, tmp_path / "bare", without_copies)
    assert "w1" in {t.name for t in onnx.load(made.path).graph.initializer}, "in the file it is float"
    found = look(source, made, IMAGES)
    blamed = found["blamed"]
    assert (blamed["tensor"], blamed["node"], blamed["fused"]) == ("c1", "conv1", True)
    assert blamed["local_db"] > 100 > 20 > blamed["after_db"]
    assert "how the runtime computes Conv conv1 together with its neighbours" in sentence(found)


def test_the_layer_is_left_out_where_that_helps() -> None:
    layer = {"operator": "MatMul", "node": "up: 1", "module": "", "fused": False, "alone_db": 12.0, "tensor": "t"}
    step = {"pass": "onnx.quantize", "fidelity": "lossy", "status": "failed",
            "blame": {"blamed": layer, "output_db": 11.0, "layers": [], "worst": [], "problem": ""}}  # fmt: skip
    assert remedy(step).startswith('leave that layer in float, with: {exclude: ["up: 1"]}')
    for change in ({"operator": "Relu"}, {"fused": True}, {"alone_db": 40.0}):
        other = {**step, "blame": {**step["blame"], "blamed": {**layer, **change}}}
        assert remedy(other).startswith("other options")


def test_an_overflow_in_float16_names_the_node_of_the_first_infinity(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x a", "h", "first"), node("Relu", "h", "r"), node("MatMul", "r loud", "k", "second"),
             node("Mul", "k quiet", "q"), node("MatMul", "q b", "y", "third")]  # fmt: skip
    proto = onnx_models.model(
        nodes, [value("x", FLOAT, ["batch", 8])], [value("y", FLOAT, ["batch", 6])],
        {"a": weight(8, 8), "loud": weight(8, 8) * 3e5, "quiet": 1e-4, "b": weight(8, 6)},
    )  # fmt: skip
    source = saved(proto, tmp_path / "source")

    def half(proto: Any) -> None:
        for tensor in proto.graph.initializer:
            with np.errstate(over="ignore"):  # the weight itself, too large for float16, becomes infinite
                values = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        proto.graph.node[0].input[0] = "x16"
        proto.graph.node[-1].output[0] = "y16"
        first, last = node("Cast", "x", "x16", to=TensorProto.FLOAT16), node("Cast", "y16", "y", to=FLOAT)
        kept = [first, *proto.graph.node, last]
        del proto.graph.node[:]
        proto.graph.node.extend(kept)

    found = look(source, edited(source, tmp_path / "half", half), [{"x": np.ones((1, 8), np.float32)}])
    assert found["nonfinite"]
    blamed = found["blamed"]
    assert (blamed["tensor"], blamed["operator"], blamed["node"]) == ("k", "MatMul", "second")
    assert blamed["nonfinite"]
    assert sentence(found) == "the first NaN or infinity comes out of MatMul second; parent is finite there"
    json.dumps(found, allow_nan=False)


def test_float16_made_by_the_pass_is_even(net: Artifact, tmp_path: Path) -> None:
    made, _, _ = onnx_models.made(FP16, net, tmp_path)
    found = look(net, made, IMAGES)
    assert not found["nonfinite"]
    assert min(layer["after_db"] for layer in found["layers"]) > 50
    assert {"c0", "c1", "sum"} <= {layer["tensor"] for layer in found["layers"]}


def test_a_search_in_small_pieces_and_from_far_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(encoder(), tmp_path / "source")
    changed = edited(source, tmp_path / "changed", constants({"wk": lambda w: w * np.float32(0.6)}))
    feeds = [feed_of(text) for text in texts(2)]
    whole = look(source, changed, feeds)
    assert (whole["blamed"]["tensor"], whole["blamed"]["node"]) == ("k0", "k_proj")
    asked: list[int] = []
    monkeypatch.setattr(layers, "CHUNK_BYTES", 4000)
    with get_runner("onnx").inside[0](source) as model:
        kind = type(model)
    values = kind.values

    def counted(self: Any, names: Sequence[str], tensors: Tensors, given: Any = None) -> Tensors:
        asked.append(len(names))
        return values(self, names, tensors, given)

    monkeypatch.setattr(kind, "values", counted)
    small = look(source, changed, feeds)
    assert small["layers"] == whole["layers"]
    assert max(asked) < whole["compared"]
    monkeypatch.setattr(layers, "MOST", 12)
    far = look(source, changed, feeds)
    assert far["blamed"]["node"] == "k_proj"
    assert far["compared"] < whole["compared"]


def test_no_time_left_is_told(net: Artifact) -> None:
    found = look(net, net, IMAGES, seconds=-1.0)
    assert (found["compared"], found["blamed"]) == (0, None)
    assert found["notes"] == ["stopped for time: 0 of 8 tensors compared"]


# ------------------------------------------------------------------------------------------------ in a run

RECIPE = """
version: 1
name: net
model: {{onnx: source/model.onnx}}
inputs: {{image: {{shape: [batch, 3, 16, 16], dtype: float32}}}}
dims: {{batch: {{min: 1, opt: 4, max: 8}}}}
data: {{fit: {{npz: fit.npz}}, judge: {{npz: judge.npz}}}}
check_on: judge
{more}
steps:
  - {{id: int8, use: onnx.quantize, data: fit, check: ["cosine >= 0.999999"]}}
  - {{id: ov, from: int8, to: openvino}}
"""


def test_a_failed_step_names_its_layer_in_every_report(net: Artifact, tmp_path: Path) -> None:
    edited(net, tmp_path / "source", OUTLIER)
    for name, seed in (("fit", 0), ("judge", 1)):
        np.savez(tmp_path / f"{name}.npz", image=np.stack([image["image"] for image in images(12, seed)]))
    (tmp_path / "r.yaml").write_text(RECIPE.format(more=""))
    (tmp_path / "off.yaml").write_text(RECIPE.format(more="blame: false"))

    def run(recipe: str) -> optkit.Report:
        with pytest.raises(optkit.CheckError) as failed:
            optkit.convert(tmp_path / recipe, out=tmp_path / "out", cache=tmp_path / "cache")
        assert failed.value.report is not None
        return failed.value.report

    report = run("r.yaml")
    step = report.step("int8")
    assert (step["status"], report.step("ov")["status"]) == ("failed", "blocked")
    blame = step["blame"]
    assert (blame["against"], blame["case"], blame["blamed"]["node"]) == ("source", "samples", "conv1")
    assert blame["samples"][0] == next(v["worst_sample"] for v in step["check"]["cases"][0]["verdicts"])
    assert report.step("ov")["blame"] is None
    assert optkit.Report.read(tmp_path / "out/report.json").data == report.data
    said = "the error comes from Conv conv1"
    assert said in (tmp_path / "out/report.md").read_text().replace("The error", "the error")
    page = html.render(report.data)
    assert said.capitalize().split()[0] in page
    assert "SQNR along the layers" in page
    assert said in junit.render(report.data)
    assert markdown.render(report.data).count("> #") == 1

    told = io.StringIO()
    told.write("\n".join(wrongs(report.data, told)))
    assert f"  {said}: " in told.getvalue()

    again = run("r.yaml")
    assert again.step("int8")["cached"] == {"run": True, "check": True}
    assert again.step("int8")["blame"] == blame
    assert not list((tmp_path / "out/logs").glob("blame-*")) or again.step("int8")["seconds"]["check"] == 0
    assert run("off.yaml").step("int8")["blame"] is None


def test_check_draws_the_layers_on_request(net: Artifact, tmp_path: Path) -> None:
    from optkit.cli import cli

    other = edited(net, tmp_path / "other", constants({"w1": lambda w: w * np.float32(1.5)}))
    asked = ["check", str(net.path), str(other.path)]
    plain = CliRunner().invoke(cli, asked, standalone_mode=False)
    assert "--layers names the layer" in plain.output
    told = CliRunner().invoke(cli, [*asked, "--layers"], standalone_mode=False)
    assert "the error comes from Conv conv1: exact before it" in told.output
    assert [line.split()[-1] for line in told.output.splitlines() if line.startswith("> ")] == ["conv1"]
    data = json.loads(CliRunner().invoke(cli, [*asked, "--layers", "--json", "--quiet"], standalone_mode=False).stdout)
    assert data["blame"]["blamed"]["node"] == "conv1"
    same = CliRunner().invoke(cli, ["check", str(net.path), str(net.path), "--layers"], standalone_mode=False)
    assert "no layer is to blame" in same.output


def test_models_without_a_common_tensor_are_told_apart(net: Artifact, tmp_path: Path) -> None:
    def rename(proto: Any) -> None:
        inner = {name for n in proto.graph.node for name in n.output} - {"logits"}
        for n in proto.graph.node:
            for side in (n.input, n.output):
                for k, name in enumerate(side):
                    side[k] = f"other_{name}" if name in inner else name

    other = edited(net, tmp_path / "other", rename)
    result = optkit.compare(net.path, other.path, layers=True)
    assert result["blame"]["problem"] == f"no common tensors with {net.path}"
    assert result["blame"]["blamed"] is None

    def end(proto: Any) -> None:
        proto.graph.node[-1].output[0] = proto.graph.output[0].name = "scores"

    result = optkit.compare(net.path, edited(net, tmp_path / "end", end).path, layers=True)
    assert not result["held"]
    assert result["blame"]["problem"] == f"not compared with {net.path}: they have no output in common"
