"""What each target refuses of a model, told before any build: operators, types, opsets, quantised integers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_models as zoo
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper
from tflite_kit import IMAGE, converted, rewritten
from torch import nn

import optkit
from optkit.cli import cli
from optkit.errors import SourceError, UserError
from optkit.formats.onnx.refusal import module_of
from optkit.formats.tensorrt import engine as tensorrt_engine
from optkit.lints.linting import TARGETS, look
from optkit.passes import onnx_quantize
from optkit.testing import ListSamples

FLOAT, FLOAT16, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE


def written(proto: Any, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    onnx.save(proto, path)
    return path


def refused(path: Path, target: str) -> dict[str, tuple[str, str]]:
    """Node to operator and reason."""
    result = look(path, target)
    assert [text for text in result["unchecked"] if "can be resized along" not in text] == []
    assert all(r["hint"] for r in result["refused"]), result
    return {r["node"]: (r["operator"], r["what"]) for r in result["refused"]}


def odd() -> Any:
    """Two operators that hardly anybody has, one that nobody has, and text."""
    nodes = [
        zoo.node("Det", "x", "d", "determinant"),
        zoo.node("Relu", "x", "r"),
        zoo.node("StringNormalizer", "s", "t", "words"),
        zoo.node("Nonsense", "x", "n", "sense"),
    ]
    nodes[0].metadata_props.add(key="namespace", value="head.volume")
    inputs = [zoo.value("x", FLOAT, ["batch", 4, 4]), zoo.value("s", TensorProto.STRING, [3])]
    outputs = [zoo.value("d", FLOAT, ["batch"]), zoo.value("t", TensorProto.STRING, [3]), zoo.value("n", FLOAT, None)]
    return zoo.model(nodes, inputs, outputs, {})


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "edgetpu"])  # which takes TFLite
@pytest.mark.parametrize("make", [zoo.cnn, zoo.encoder])
def test_plain_models_are_taken_by_all(make: Any, target: str, tmp_path: Path) -> None:
    assert refused(written(make(), tmp_path), target) == {}


def test_operators_tensorrt_has_not(tmp_path: Path) -> None:
    assert refused(written(odd(), tmp_path), "tensorrt") == {
        "s": ("", "input s is string, which TensorRT has not"),
        "t": ("", "output t is string, which TensorRT has not"),
        "determinant": ("Det", "there is no such operator"),
        "words": ("StringNormalizer", "there is no such operator"),
        "sense": ("Nonsense", "there is no such operator"),
    }


def test_operators_openvino_has_not(tmp_path: Path) -> None:
    told = "there is no conversion for this operator"
    assert refused(written(odd(), tmp_path), "openvino") == {
        "determinant": ("Det", told), "words": ("StringNormalizer", told), "sense": ("Nonsense", told),
    }  # fmt: skip


def test_operators_onnxruntime_has_not(tmp_path: Path) -> None:
    assert refused(written(odd(), tmp_path), "onnxruntime") == {"sense": ("Nonsense", "there is no such operator")}


def test_every_node_without_a_kernel_is_named_not_only_the_first(tmp_path: Path) -> None:
    nodes = [zoo.node("Relu", "i", "a", "one"), zoo.node("Relu", "x", "r"), zoo.node("Relu", "a", "b", "two"),
             zoo.node("Sin", "b", "c", "three")]  # fmt: skip
    inputs = [zoo.value("i", TensorProto.INT16, [2]), zoo.value("x", FLOAT, [2])]
    outputs = [zoo.value("c", TensorProto.INT16, [2]), zoo.value("r", FLOAT, [2])]
    path = written(zoo.model(nodes, inputs, outputs, {}), tmp_path)
    assert refused(path, "onnxruntime") == {
        "one": ("Relu", "there is no kernel for these types (int16)"),
        "two": ("Relu", "there is no kernel for these types (int16)"),
        "three": ("Sin", "it does not take these types (int16)"),
    }


def test_an_opset_onnxruntime_does_not_know_yet(tmp_path: Path) -> None:
    proto = zoo.cnn()
    proto.opset_import[0].version = 999
    (graph,) = look(written(proto, tmp_path), "onnxruntime")["refused"]
    assert graph["node"] == ""
    assert "opset 999" in graph["what"]
    assert "pip install -U onnxruntime" in graph["hint"]


def test_what_tensorrt_rtx_reads_and_cannot_build(tmp_path: Path) -> None:
    boxes = zoo.model(
        [zoo.node("NonMaxSuppression", "boxes scores most", "kept", "nms")],
        [zoo.value("boxes", TensorProto.FLOAT, [1, 6, 4]), zoo.value("scores", TensorProto.FLOAT, [1, 1, 6])],
        [zoo.value("kept", TensorProto.INT64, ["n", 3])],
        {"most": np.int64([3])},
    )
    (told,) = look(written(boxes, tmp_path), "tensorrt")["refused"]
    assert (told["node"], told["operator"]) == ("nms", "NonMaxSuppression")
    assert "no kernel" in told["what"]
    for kind, refusals in ((TensorProto.FLOAT, 1), (TensorProto.FLOAT16, 0)):
        ends = [zoo.value(name, kind, [1, 2, 8, 64]) for name in "qkvy"]
        attention = zoo.model([zoo.node("Attention", "q k v", "y", "attend")], ends[:3], ends[3:], {}, opset=23)
        found = look(written(attention, tmp_path), "tensorrt")["refused"]
        assert [(r["node"], "onnx.fp16" in r["hint"]) for r in found] == [("attend", True)] * refusals


def test_an_old_opset_that_the_parser_takes_is_not_refused(tmp_path: Path) -> None:
    proto = zoo.model(
        [zoo.node("MatMul", "x w", "y", "product")],
        [zoo.value("x", TensorProto.FLOAT, [2, 4])],
        [zoo.value("y", TensorProto.FLOAT, [2, 4])],
        {"w": np.eye(4, dtype=np.float32)},
        opset=7,
    )
    assert look(written(proto, tmp_path), "tensorrt")["refused"] == []


def test_integers_made_for_onnxruntime_are_not_for_tensorrt(tmp_path: Path) -> None:
    source = zoo.saved(zoo.cnn(), tmp_path / "cnn")
    samples = ListSamples(zoo.images(8))
    other, _, _ = zoo.made(onnx_quantize.PASS, source, tmp_path, samples)
    found = refused(other.path, "tensorrt")
    assert found["b0_DequantizeLinear"] == ("DequantizeLinear", "a quantised int32 bias")
    assert found["image_QuantizeLinear"] == ("QuantizeLinear", "uint8 integers")
    hints = {r["hint"] for r in look(other.path, "tensorrt")["refused"]}
    assert hints == {
        "quantise with onnx.quantize and with: {for: tensorrt}, which gives symmetric int8 and a float bias"
    }

    shifted, _, _ = zoo.made(onnx_quantize.PASS, source, tmp_path, samples, activation_type="int8", symmetric=False)
    told = {what for _, what in refused(shifted.path, "tensorrt").values()}
    assert "a zero point other than 0 (asymmetric ranges)" in told

    right, _, _ = zoo.made(onnx_quantize.PASS, source, tmp_path, samples, **{"for": "tensorrt"})
    assert refused(right.path, "tensorrt") == {}
    assert refused(other.path, "openvino") == refused(other.path, "onnxruntime") == {}


def test_dynamic_quantisation_is_not_for_tensorrt(tmp_path: Path) -> None:
    source = zoo.saved(zoo.encoder(), tmp_path / "enc")
    made, _, _ = zoo.made(onnx_quantize.PASS, source, tmp_path, method="dynamic")
    result = look(made.path, "tensorrt")["refused"]
    assert {r["operator"] for r in result} == {"DynamicQuantizeLinear", "MatMulInteger"}
    assert {r["hint"] for r in result} == {"onnx.quantize with: {method: static, for: tensorrt}"}


def test_without_a_builder_the_rules_remain_and_the_rest_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    source = zoo.saved(zoo.cnn(), tmp_path / "cnn")
    other, _, _ = zoo.made(onnx_quantize.PASS, source, tmp_path, ListSamples(zoo.images(8)))
    monkeypatch.setattr(tensorrt_engine, "BUILDERS", ("tensorrt_not_there",))
    result = look(other.path, "tensorrt")
    assert result["refused"]
    assert result["unchecked"] == [
        "operators, types and opset, which TensorRT's parser tells: tensorrt_not_there is not installed"
    ]


@pytest.mark.parametrize(
    ("notes", "module"),
    [
        ({}, ""),
        ({"namespace": "encoder.layer.0"}, "encoder.layer.0"),
        ({"namespace": ": Net/stem: Sequential/stem.1: Conv2d/conv2d: aten.conv2d.default"}, "stem.1"),
        ({"pkg.torch.onnx.name_scopes": "['', 'stem', 'stem.1', 'conv2d']"}, "stem.1"),
        ({"pkg.torch.onnx.name_scopes": "['', 'relu']"}, ""),
        ({"pkg.torch.onnx.name_scopes": "not a list"}, ""),
    ],
)
def test_the_module_a_node_came_from(notes: dict[str, str], module: str) -> None:
    node = zoo.node("Relu", "x", "y")
    for key, value in notes.items():
        node.metadata_props.add(key=key, value=value)
    assert module_of(node) == module


def test_the_command(tmp_path: Path) -> None:
    path = written(odd(), tmp_path)
    said = CliRunner().invoke(cli, ["lint", str(path), "--for", "openvino", "--for", "tensorrt"])
    assert said.exit_code == 1
    assert "openvino refuses 3 nodes" in said.stdout
    assert "determinant  Det               head.volume" in said.stdout
    assert "try: replace the operator in the model" in said.stdout
    as_data = CliRunner().invoke(cli, ["lint", str(path), "--for", "onnxruntime", "--json"])
    assert as_data.exit_code == 1
    assert json.loads(as_data.stdout)[0]["refused"][0]["operator"] == "Nonsense"
    good = CliRunner().invoke(cli, ["lint", str(written(zoo.cnn(), tmp_path, "good.onnx")), "--for", "onnxruntime"])
    assert (good.exit_code, good.stdout) == (0, "onnxruntime refuses nothing\n")


def test_operators_types_and_control_flow_tflite_has_not(tmp_path: Path) -> None:
    branches = [
        helper.make_graph([helper.make_node(op, ["x"], ["o"])], op, [], [zoo.value("o", FLOAT, [2, 3])])
        for op in ("Sin", "Cos")
    ]
    choice = helper.make_node("If", ["c"], ["y"], name="choose", then_branch=branches[0], else_branch=branches[1])
    nodes = [choice, zoo.node("Sin", "w", "z", "wide"), zoo.node("Nonsense", "x", "n", "sense")]
    inputs = [zoo.value("c", TensorProto.BOOL, []), zoo.value("x", FLOAT, [2, 3]), zoo.value("w", DOUBLE, [2])]
    outputs = [zoo.value("y", FLOAT, [2, 3]), zoo.value("z", DOUBLE, [2]), zoo.value("n", FLOAT, None)]
    assert refused(written(zoo.model(nodes, inputs, outputs, {}), tmp_path), "tflite") == {
        "w": ("", "input w is float64, which TFLite has no kernels for"),
        "z": ("", "output z is float64, which TFLite has no kernels for"),
        "choose": (
            "If",
            "control flow: but for a few patterns it becomes a custom operator that LiteRT has no kernel for",
        ),
        "wide": ("Sin", "it computes in float64, which TFLite has no kernels for"),
        "sense": ("Nonsense", "there is no conversion for this operator"),
    }


def test_operators_that_tflite_has_at_some_sizes_alone_are_told_as_unchecked(tmp_path: Path) -> None:
    nodes = [zoo.node("Det", "x", "d", "area"), zoo.node("DFT", "s", "y", "spectrum")]
    inputs = [zoo.value("x", TensorProto.FLOAT, [2, 4, 4]), zoo.value("s", TensorProto.FLOAT, [1, 8, 1])]
    outputs = [zoo.value("d", TensorProto.FLOAT, [2]), zoo.value("y", TensorProto.FLOAT, [1, 8, 2])]
    result = look(written(zoo.model(nodes, inputs, outputs, {}), tmp_path), "tflite")
    assert [r["operator"] for r in result["refused"]] == ["DFT"]
    assert result["unchecked"] == ["whether Det 'area' can be converted at these sizes"]


def test_integers_and_dims_tflite_has_not(tmp_path: Path) -> None:
    source = zoo.saved(zoo.cnn(), tmp_path / "cnn")
    made, _, _ = zoo.made(onnx_quantize.PASS, source, tmp_path, ListSamples(zoo.images(8)))
    found = look(made.path, "tflite")["refused"]
    assert {r["operator"] for r in found} == {"QuantizeLinear", "DequantizeLinear"}
    assert {r["hint"] for r in found} == {"convert the float model, then quantise the TFLite file: tflite.quantize"}
    (told,) = look(written(zoo.encoder(), tmp_path), "tflite")["unchecked"]
    assert told.startswith("whether the converted graph can be resized along length")


def test_a_tflite_file(tmp_path: Path) -> None:
    _, made, _, _ = converted(tmp_path / "conv", "Conv", IMAGE)
    assert refused(made.path, "tflite") == {}

    def custom(model: Any, agreed: Any) -> None:
        code = model.operatorCodes[model.subgraphs[0].operators[1].opcodeIndex]
        code.customCode, code.builtinCode = b"Mine", 32

    other = rewritten(made, tmp_path / "custom.tflite", custom).path
    assert set(refused(other, "tflite").values()) == {("Mine", "a custom operator, which LiteRT has no kernel for")}

    def wide(model: Any, agreed: Any) -> None:
        graph = model.subgraphs[0]
        for tensor in graph.tensors:
            tensor.type = {0: 10}.get(tensor.type, tensor.type)  # float64, whose bytes are twice as many
            data = model.buffers[tensor.buffer].data
            if tensor.type == 10 and data is not None and len(data):
                model.buffers[tensor.buffer].data = np.repeat(np.asarray(data), 2)

    (told,) = look(rewritten(made, tmp_path / "wide.tflite", wide).path, "tflite")["refused"]
    assert (told["operator"], bool(told["node"]), bool(told["hint"])) == ("CONV_2D", True, True)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec:FutureWarning")  # of torch.onnx's own
def test_the_torch_module_is_named_for_what_torch_exported(tmp_path: Path) -> None:
    """As torch.onnx.export writes it, without optkit: the scopes are in the node's metadata."""

    class Volume(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.det(x)

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.volume = Volume()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.volume(x.relu()) + 1

    whole = nn.Sequential(nn.Linear(4, 4), Head()).eval()
    program = torch.onnx.export(whole, (torch.ones(2, 4, 4),), dynamo=True, verbose=False)
    program.save(str(tmp_path / "det.onnx"), external_data=False)
    for target in ("tensorrt", "openvino"):
        (told,) = look(tmp_path / "det.onnx", target)["refused"]
        assert (told["operator"], told["module"]) == ("Det", "1.volume")


def test_what_cannot_be_linted(tmp_path: Path) -> None:
    path = written(zoo.cnn(), tmp_path)
    with pytest.raises(UserError, match="nothing to lint for 'tensort'") as caught:
        optkit.lint(path, "tensort")
    assert caught.value.hint == "did you mean 'tensorrt'?"
    with pytest.raises(UserError, match="is no ONNX model"):
        optkit.lint(tmp_path / "net.py:build", "openvino")
    with pytest.raises(UserError, match=r"there is no .*/nt") as caught:
        optkit.lint(tmp_path / "nt", "edgetpu")
    with pytest.raises(UserError, match="is no TFLite model, which is what lint --for edgetpu looks at") as caught:
        optkit.lint(path, "edgetpu")
    assert "mode: static, io: int8" in caught.value.hint
    with pytest.raises(UserError, match="is compiled for the Edge TPU already"):
        optkit.lint(tmp_path / "x_edgetpu.tflite", "edgetpu")
    (tmp_path / "bad.tflite").write_bytes(b"no model")
    with pytest.raises(SourceError, match="is not a TFLite model"):
        optkit.lint(tmp_path / "bad.tflite", "edgetpu")
    with pytest.raises(SourceError, match="there is no ONNX file"):
        optkit.lint(tmp_path / "none.onnx", "openvino")
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x09 no model")
    with pytest.raises(SourceError, match="is not an ONNX model or is damaged"):
        optkit.lint(tmp_path / "bad.onnx", "tensorrt")


def test_sarif_names_the_file_the_node_and_what_to_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(odd(), tmp_path, "odd one.onnx")
    runs = []
    for name in ("a.sarif", "b.sarif"):
        line = ["lint", "odd one.onnx", "--for", "openvino", "--for", "tensorrt", "--sarif", name]
        assert CliRunner().invoke(cli, line).exit_code == 1
        runs.append(Path(name).read_text(encoding="utf-8"))
    assert runs[0] == runs[1]
    document = json.loads(runs[0])
    assert document["version"] == "2.1.0"
    (run,) = document["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(rules) == len(set(rules))
    assert {"openvino/Nonsense", "tensorrt/Nonsense"} <= set(rules)
    refusals = [r for target in ("openvino", "tensorrt") for r in look(Path("odd one.onnx"), target)["refused"]]
    assert len(run["results"]) == len(refusals)
    for result, refusal in zip(run["results"], refusals, strict=True):
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert refusal["what"] in result["message"]["text"]
        assert f"Try: {refusal['hint']}" in result["message"]["text"]
        (place,) = result["locations"]
        assert place["physicalLocation"]["artifactLocation"]["uri"] == "odd%20one.onnx"
        assert place["physicalLocation"]["region"] == {"startLine": 1}
        assert place["logicalLocations"][0]["name"] == (refusal["node"] or "the graph")
    prints = [result["partialFingerprints"]["refusal/v1"] for result in run["results"]]
    assert len(prints) == len(set(prints))


def test_sarif_of_what_nobody_refuses_is_empty_and_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = written(zoo.cnn(), tmp_path)
    assert CliRunner().invoke(cli, ["lint", str(path), "--for", "openvino", "--sarif", f"{path}.sarif"]).exit_code == 0
    assert json.loads(Path(f"{path}.sarif").read_text(encoding="utf-8"))["runs"][0]["results"] == []
    done = CliRunner().invoke(cli, ["lint", str(path), "--for", "openvino", "--sarif", f"{path}/a.sarif"])
    assert done.exit_code == 2
    assert "a.sarif cannot be written" in done.stderr
