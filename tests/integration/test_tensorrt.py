"""TensorRT engines, really built by TensorRT-RTX for GPUs that are not here; what is refused, and who can load what."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_models as zoo
import pytest
from onnx import TensorProto
from pydantic import ValidationError

from optkit.artifact import Artifact, Dim, digest_file
from optkit.errors import DataError, NotHereError, SourceError, StepError, UnavailableError
from optkit.formats.tensorrt import engine as tensorrt_engine
from optkit.formats.tensorrt import rules as tensorrt_rules
from optkit.formats.tensorrt.cuda_driver import Device
from optkit.passes import onnx_fp16, onnx_quantize, onnx_to_tensorrt
from optkit.passes.onnx_to_tensorrt import OnnxToTensorRT
from optkit.runners import tensorrt_runner
from optkit.testing import ListSamples

Forms = Mapping[str, Artifact]


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Forms:
    """The small CNN in float32, float16, int8 for TensorRT, and int8 for onnxruntime."""
    base = tmp_path_factory.mktemp("forms")
    whole = zoo.saved(zoo.cnn(), base / "cnn")
    samples = ListSamples(zoo.images(16))
    half, _, complaints = zoo.made(onnx_fp16.PASS, whole, base)
    ints, _, more = zoo.made(onnx_quantize.PASS, whole, base, samples, **{"for": "tensorrt"})
    other, _, _ = zoo.made(onnx_quantize.PASS, whole, base, samples)
    assert not complaints + more
    return {"float32": whole, "float16": half, "int8": ints, "uint8": other}


def build(source: Artifact, folder: Path, dims: Mapping[str, Dim] = zoo.DIMS, **options: Any) -> tuple[Artifact, Any]:
    """Run the pass into a new folder; its confirm has nothing to say. The engine and the notes."""
    chosen, context = OnnxToTensorRT(**options), replace(zoo.context(folder), dims=dims)
    out = folder / f"engine-{len(list(folder.iterdir()))}"
    out.mkdir()
    notes = onnx_to_tensorrt.run(source, out, chosen, context)
    assert sorted(p.name for p in out.iterdir()) == ["engine.json", "model.engine"]
    made = engine(out)
    assert onnx_to_tensorrt.confirm(source, made, chosen, context) == []
    json.dumps(notes, allow_nan=False)
    return made, notes


def engine(folder: Path) -> Artifact:
    path = folder / "model.engine"
    return Artifact("tensorrt", path, "digest", tensorrt_engine.describe(path, {}), ("engine.json", "model.engine"))


@pytest.mark.parametrize(
    ("form", "capabilities", "precision"),
    [
        ("float32", ["8.6", "8.9", "12.0"], "float32 (3)"),
        ("float16", ["7.5"], "float16 (3)"),
        ("float16", ["7.5", "8.9"], "float16 (3)"),
        ("int8", ["8.6", "8.9"], "float32 from int8 (3)"),
        ("int8", ["12.0"], "float32 from int8 (3)"),
        ("float32", [], "float32 (3)"),
    ],
)
def test_engines_are_built_where_no_gpu_is(
    form: str, capabilities: list[str], precision: str, forms: Forms, tmp_path: Path
) -> None:
    made, notes = build(forms[form], tmp_path, compute_capability=capabilities)
    assert [str(t) for t in made.signature.inputs] == ["image: float32[batch, 3, 16, 16]"]
    assert [str(t) for t in made.signature.outputs] == ["logits: float32[batch, 10]"]
    assert notes["profiles"] == [{"image": {"min": [1, 3, 16, 16], "opt": [4, 3, 16, 16], "max": [16, 3, 16, 16]}}]
    assert notes["warnings"] == []
    assert notes["layers"]["convolution"] == 2
    looked = tensorrt_runner.RUNNER.inspect(made.path)
    assert (looked["precision"], looked["compute_capability"]) == (precision, capabilities)
    assert looked["version"] == importlib.metadata.version("tensorrt_rtx")


def test_equal_inputs_give_equal_bytes(forms: Forms, tmp_path: Path) -> None:
    made = [build(forms["int8"], tmp_path, compute_capability=["8.9"])[0].path.parent for _ in range(2)]
    for name in ("model.engine", "engine.json"):
        assert digest_file(made[0] / name) == digest_file(made[1] / name)


def test_a_text_encoder_with_two_dims(tmp_path: Path) -> None:
    made, notes = build(zoo.saved(zoo.encoder(), tmp_path / "enc"), tmp_path)
    assert [str(t) for t in made.signature.inputs] == ["ids: int64[batch, length]", "mask: int64[batch, length]"]
    assert notes["warnings"] == []
    assert notes["profiles"][0]["ids"] == {"min": [1, 2], "opt": [4, 8], "max": [16, 32]}
    assert tensorrt_engine.read(made.path)["compute"]["scores"]["dtype"] == "float32"


def test_weights_beside_the_file_are_found(tmp_path: Path) -> None:
    source = zoo.saved(zoo.cnn(), tmp_path / "cnn", external=True)
    assert "model.onnx.data" in source.files
    build(source, tmp_path)


def test_a_model_without_a_dynamic_dim_has_no_profile(tmp_path: Path) -> None:
    proto = zoo.cnn()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    made, notes = build(zoo.saved(proto, tmp_path / "cnn"), tmp_path, dims={})
    assert notes["profiles"] == []
    assert made.signature.inputs[0].shape == (2, 3, 16, 16)


def test_options_reach_the_builder(forms: Forms, tmp_path: Path) -> None:
    made, _ = build(forms["float32"], tmp_path, workspace_mib=64, optimization_level=1, tf32=True)
    assert tensorrt_engine.read(made.path)["options"] == OnnxToTensorRT(
        workspace_mib=64, optimization_level=1, tf32=True
    ).model_dump(mode="json")


# --- what is refused


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"compute_capability": ["sm_89"]}, "'sm_89' is no compute capability; write it as NVIDIA does"),
        ({"builder": "tensorrt", "compute_capability": ["8.9"]}, "full TensorRT builds for the GPU of this machine"),
        ({"builder": "tensorrt_rtx", "version_compatible": True}, "TensorRT-RTX has no version_compatible"),
        ({"builder": "tensorrt_rtx", "timing_cache": "t", "hardware_compatible": "ampere_plus"},
         "TensorRT-RTX has no timing_cache, hardware_compatible"),
        ({"fp16": True}, "Extra inputs are not permitted"),
        ({"optimization_level": 6}, "less than or equal to 5"),
    ],
)  # fmt: skip
def test_options_that_contradict_each_other(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        OnnxToTensorRT(**options)


def failure(source: Artifact, folder: Path, **options: Any) -> StepError:
    with pytest.raises(StepError) as caught:
        build(source, folder, **options)
    return caught.value


def test_an_option_that_the_builder_found_here_lacks(forms: Forms, tmp_path: Path) -> None:
    error = failure(forms["float32"], tmp_path, version_compatible=True)
    assert (error.what, error.subject) == ("TensorRT-RTX has no version_compatible", "with.version_compatible")


def test_a_capability_that_nobody_builds_for(forms: Forms, tmp_path: Path) -> None:
    error = failure(forms["float32"], tmp_path, compute_capability=["9.0"])
    assert "does not build for compute capability 9.0" in error.what
    assert (error.subject, error.hint) == ("with.compute_capability", "one of: 7.5, 8.0, 8.6, 8.9, 12.0, 12.1")


def test_float32_products_on_turing(forms: Forms, tmp_path: Path) -> None:
    error = failure(forms["float32"], tmp_path, compute_capability=["7.5"])
    assert "Cannot compile operation 'head' for Turing" in error.what
    assert "/_src/" not in error.what
    assert "onnx.fp16" in error.hint


def test_integers_made_for_onnxruntime(forms: Forms, tmp_path: Path) -> None:
    error = failure(forms["uint8"], tmp_path)
    assert error.what == (
        "TensorRT-RTX cannot take DequantizeLinear 'b0_DequantizeLinear': a quantised int32 bias (and 14 more)"
    )
    assert "for: tensorrt" in error.hint
    assert "uint8 integers" in error.details


def quantised(zero: Any, kind: Any, *, constant: bool = False) -> onnx.ModelProto:
    """A product of an activation quantised with this zero point, which a Constant node may hold."""
    nodes = [
        zoo.node("QuantizeLinear", "x scale zero", "q", "quant"),
        zoo.node("DequantizeLinear", "q scale zero", "d"),
        zoo.node("MatMul", "d w", "y", "product"),
    ]
    held = np.array(zero, kind)
    constants = {"scale": 0.05, "w": np.eye(4, dtype=np.float32)} | ({} if constant else {"zero": held})
    if constant:
        nodes.insert(0, zoo.node("Constant", "", "zero", "zero", value=onnx.numpy_helper.from_array(held)))
    ends = [zoo.value(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    return zoo.model(nodes, ends[:1], ends[1:], constants)


def test_integers_that_the_parser_takes_for_others_are_refused(tmp_path: Path) -> None:
    """With zero point 0 the parser takes uint8 for int8 without a word, which clips the upper half."""
    for number, (zero, kind, what) in enumerate(
        [(0, np.uint8, "uint8 integers"), (3, np.int8, "a zero point other than 0 (asymmetric ranges)")]
    ):
        error = failure(zoo.saved(quantised(zero, kind), tmp_path / str(number)), tmp_path)
        assert error.what == f"TensorRT-RTX cannot take QuantizeLinear 'quant': {what} (and 1 more)"
        assert "for: tensorrt" in error.hint
    for number, constant in enumerate((False, True)):
        build(zoo.saved(quantised(0, np.int8, constant=constant), tmp_path / f"good{number}"), tmp_path)


def test_what_fails_only_when_it_is_built_names_the_node_and_the_remedy(forms: Forms, tmp_path: Path) -> None:
    proto = zoo.model(
        [zoo.node("NonMaxSuppression", "boxes scores most", "kept", "nms")],
        [zoo.value("boxes", TensorProto.FLOAT, [1, 6, 4]), zoo.value("scores", TensorProto.FLOAT, [1, 1, 6])],
        [zoo.value("kept", TensorProto.INT64, ["n", 3])],
        {"most": np.int64([3])},
    )
    proto.graph.node[0].metadata_props.add(key="namespace", value="head.keep")
    error = failure(zoo.saved(proto, tmp_path / "nms"), tmp_path)
    assert "because of NonMaxSuppression 'nms' of the torch module head.keep" in error.what
    assert "tacticSupply" not in error.what
    assert "replace the operator" in error.hint
    error = failure(forms["float32"], tmp_path, workspace_mib=1)
    assert "within workspace limit" in error.what
    assert error.hint.startswith("raise with.workspace_mib")


def test_an_operator_that_nobody_knows(tmp_path: Path) -> None:
    proto = zoo.model(
        [zoo.node("Det", "x", "d", "determinant")],
        [zoo.value("x", TensorProto.FLOAT, ["batch", 4, 4])],
        [zoo.value("d", TensorProto.FLOAT, ["batch"])],
        {},
    )
    proto.graph.node[0].metadata_props.add(key="namespace", value="head.volume")
    source = zoo.saved(proto, tmp_path / "det")
    error = failure(source, tmp_path)
    assert (
        error.what == "TensorRT-RTX refuses Det 'determinant' of the torch module head.volume: it has no such operator"
    )
    assert "replace the operator" in error.hint


def test_a_dim_without_a_range(forms: Forms, tmp_path: Path) -> None:
    error = failure(forms["float32"], tmp_path, dims={})
    assert (error.what, error.subject) == ("axis 0 of input 'image' is dynamic and has no range", "dims")


def test_full_tensorrt_is_not_installed(forms: Forms, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="TensorRT is not installed") as caught:
        build(forms["float32"], tmp_path, builder="tensorrt")
    assert "pypi.nvidia.com" in caught.value.hint


# --- confirm on doctored files


def doctored(source: Artifact, folder: Path, change: Any) -> list[str]:
    """What confirm says after `change` has worked on the sidecar's data, in a copy of an engine for 8.9."""
    made, _ = build(source, folder, compute_capability=["8.9"])
    copy = folder / "copy"
    shutil.copytree(made.path.parent, copy)
    record = json.loads((copy / "engine.json").read_text())
    change(record)
    (copy / "engine.json").write_text(json.dumps(record))
    options = OnnxToTensorRT(compute_capability=["8.9"])
    artifact = replace(made, path=copy / "model.engine")
    return onnx_to_tensorrt.confirm(source, artifact, options, zoo.context(folder))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r["compute"]["conv0"].update(dtype="float32"),
         "conv0 computes in float32, and the graph asks for float16"),
        (lambda r: r["compute"]["conv1"].update(quantised=True), "conv1 takes a quantised input"),
        (lambda r: r["compute"].pop("head"), "no layer of the network stands for the node head"),
        (lambda r: r.update(compute_capability=["8.6"]), "it is for compute capability 8.6, not 8.9"),
        (lambda r: r["profiles"][0]["image"].update(max=[8, 3, 16, 16]),
         "axis 0 of input image takes [1, 4, 8], not [1, 4, 16]"),
        (lambda r: r.update(profiles=[]), "axis 0 of input image takes [None, None, None], not [1, 4, 16]"),
        (lambda r: r["engine"].update(sha256="0"), "model.engine is not the engine that engine.json describes"),
    ],
)  # fmt: skip
def test_confirm_finds_what_was_not_done(change: Any, told: str, forms: Forms, tmp_path: Path) -> None:
    assert doctored(forms["float16"], tmp_path, change) == [told]


def test_what_a_graph_asks_for(forms: Forms) -> None:
    assert tensorrt_rules.wanted(forms["int8"].path) == {
        name: {"dtype": "float32", "quantised": True} for name in ("conv0", "conv1", "head")
    }
    assert tensorrt_rules.wanted(forms["float16"].path)["head"] == {"dtype": "float16", "quantised": False}


# --- loading


def test_opening_an_engine_without_a_gpu_names_both_sides(forms: Forms, tmp_path: Path) -> None:
    made, _ = build(forms["float16"], tmp_path, compute_capability=["7.5"])
    here = tensorrt_engine.here()
    if any(gpu.capability == "7.5" for gpu in here.gpus):
        with tensorrt_runner.open_model(made) as session:  # a machine that has one runs it
            answer = session.infer({"image": np.stack([s["image"] for s in zoo.images(3)])})
        assert answer["logits"].shape == (3, 10)
        return
    with pytest.raises(NotHereError) as caught, tensorrt_runner.open_model(made):
        pass
    assert "built for TensorRT-RTX" in caught.value.what
    assert "compute capability 7.5" in caught.value.what
    assert f"this machine is {here}" in caught.value.what


BUILT: dict[str, Any] = {
    "builder": "tensorrt", "version": "10.3.0", "os": "Linux", "machine": "x86_64", "compute_capability": ["8.9"],
    "options": {"hardware_compatible": "none", "version_compatible": False},
}  # fmt: skip
ADA, TURING = Device(0, "RTX 4090", "8.9"), Device(0, "RTX 2080", "7.5")


@pytest.mark.parametrize(
    ("built", "machine", "told"),
    [
        ({}, ("Linux", "x86_64", (ADA,)), None),
        ({}, ("Linux", "x86_64", (TURING, replace(ADA, index=1))), None),
        ({}, ("Linux", "x86_64", ()), "this machine is Linux x86_64 with no NVIDIA GPU"),
        ({}, ("Linux", "x86_64", (TURING,)), "this machine is Linux x86_64 with RTX 2080 (compute capability 7.5)"),
        ({}, ("Windows", "AMD64", (ADA,)), "built for TensorRT 10.3.0, Linux x86_64, a GPU of compute capability 8.9"),
        ({"builder": "tensorrt_rtx"}, ("Windows", "AMD64", (ADA,)), None),
        ({"compute_capability": []}, ("Linux", "x86_64", (ADA,)), None),
        ({"compute_capability": []}, ("Linux", "x86_64", (TURING,)), "any GPU of compute capability 8.0 or later"),
        ({"compute_capability": ["8.6"], "options": {"hardware_compatible": "ampere_plus"}},
         ("Linux", "x86_64", (ADA,)), None),
    ],
)  # fmt: skip
def test_who_can_load_what(built: dict[str, Any], machine: Any, told: str | None) -> None:
    why = tensorrt_engine.refusal({**BUILT, **built}, tensorrt_engine.Machine(*machine))
    assert (why is None) if told is None else (why is not None and told in why)


@pytest.mark.parametrize(
    ("version", "compatible", "fits"),
    [("10.3.0", False, True), ("10.4.0", False, False), ("11.0.0", True, True), ("10.2.9", True, False)],
)
def test_which_version_can_load_what(version: str, compatible: bool, fits: bool) -> None:
    problem = tensorrt_engine.runtime_problem({**BUILT, "options": {"version_compatible": compatible}}, version)
    assert (problem is None) == fits
    if problem:
        assert problem.what == f"the engine was built by TensorRT 10.3.0 and this environment has TensorRT {version}"
        assert type(problem) is UnavailableError


def test_inputs_the_engine_was_not_built_for(forms: Forms, tmp_path: Path) -> None:
    made, notes = build(forms["float32"], tmp_path)
    inputs, ranges = made.signature.inputs, notes["profiles"][0]

    def problem(**tensors: Any) -> str:
        with pytest.raises(DataError) as caught:
            tensorrt_runner.checked(tensors, inputs, ranges)
        return caught.value.what

    good = np.zeros((2, 3, 16, 16), np.float32)
    assert list(tensorrt_runner.checked({"image": good}, inputs, ranges)) == ["image"]
    assert problem() == "input 'image' is missing"
    assert problem(image=good, mask=good) == "the model has no input 'mask'"
    assert problem(image=good.astype(np.float64)) == "input 'image' is float64, the model takes float32"
    assert "[1, 3, 16, 16] to [16, 3, 16, 16]" in problem(image=np.zeros((17, 3, 16, 16), np.float32))
    assert "shape (2, 16, 16, 3)" in problem(image=good.transpose(0, 2, 3, 1))
    assert "has 3 axes (3, 16, 16), the model takes 4" in problem(image=good[0])


def test_an_engine_whose_bytes_changed_is_not_given_to_the_runtime(forms: Forms, tmp_path: Path) -> None:
    made, _ = build(forms["float32"], tmp_path)
    data = bytearray(made.path.read_bytes())
    data[len(data) // 2] ^= 1
    made.path.write_bytes(data)
    with pytest.raises(SourceError, match="its bytes have changed"), tensorrt_runner.RUNNER.open(made):
        pass
    with pytest.raises(SourceError, match="its bytes have changed"):
        tensorrt_runner.RUNNER.inspect(made.path)


def test_the_cache_key_holds_the_gpu_where_the_engine_depends_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def parts(builder: str) -> list[str]:
        assert onnx_to_tensorrt.PASS.machine is not None
        return list(onnx_to_tensorrt.PASS.machine(OnnxToTensorRT(builder=builder)))  # type: ignore[arg-type]

    monkeypatch.setattr(tensorrt_engine.cuda_driver, "devices", lambda: (Device(0, "A GPU", "8.9"),))
    assert parts("tensorrt_rtx") == parts("auto") == []  # which builds for any GPU, or for those that are named
    one = parts("tensorrt")
    assert one[-1] == "A GPU 8.9"
    monkeypatch.setattr(tensorrt_engine.cuda_driver, "devices", lambda: (Device(0, "Another", "9.0"),))
    assert parts("tensorrt") != one
    monkeypatch.setattr(tensorrt_engine, "installed", lambda: ("tensorrt",))
    assert parts("auto") == parts("tensorrt")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: (f / "engine.json").unlink(), "has no engine.json beside it"),
        (lambda f: (f / "engine.json").write_text("{"), "engine.json is damaged"),
        (lambda f: (f / "engine.json").write_text('{"schema": 7}'), "schema 7, not 1"),
        (lambda f: (f / "model.engine").write_bytes(b"x"), "has 1 bytes, its engine.json says"),
        (lambda f: (f / "model.engine").unlink(), "there is no engine at"),
    ],
)
def test_a_damaged_engine_has_no_signature(damage: Any, told: str, forms: Forms, tmp_path: Path) -> None:
    made, _ = build(forms["float32"], tmp_path)
    damage(made.path.parent)
    with pytest.raises(SourceError, match=told):
        tensorrt_engine.describe(made.path, {})


def test_messages_lose_what_only_their_makers_need() -> None:
    said = ("IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Dynamic-shaped input tensor image has 4 "
            "dimensions. In validate at /_src/optimizer/api/network.cpp:4048)")  # fmt: skip
    assert tensorrt_engine.plain(said) == "Dynamic-shaped input tensor image has 4 dimensions."


def test_without_a_zero_point_integers_are_uint8(tmp_path: Path) -> None:
    model = zoo.model(
        [zoo.node("QuantizeLinear", "x scale", "q", "quant"), zoo.node("DequantizeLinear", "q scale", "y", "dequant")],
        [zoo.value("x", TensorProto.FLOAT, [2])],
        [zoo.value("y", TensorProto.FLOAT, [2])],
        {"scale": 0.1},
    )
    onnx.checker.check_model(model)
    (refusal,) = tensorrt_rules.quantisation(model, tmp_path)
    assert (refusal.node, refusal.what) == ("quant", "uint8 integers")
