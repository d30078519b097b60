"""torch.qat: what was trained with fake quantisers is what onnxruntime and OpenVINO compute on integers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import distill_kit
import numpy as np
import onnx
import pytest
import qat_zoo
import torch
import torch_kit as kit
from distill_kit import Turn

from optkit.artifact import Artifact, TensorSpec
from optkit.errors import DataError, OptkitError, StepError, UnavailableError
from optkit.formats.onnx import model as onnx_model
from optkit.formats.torch import model as torch_model
from optkit.formats.torch import quantised as torch_quantised
from optkit.formats.torch import structure as torch_structure
from optkit.formats.torch.structure import Stage
from optkit.passes import (
    onnx_quantize,
    onnx_to_openvino,
    torch_distill,
    torch_prune,
    torch_to_onnx,
    torch_to_openvino,
    torch_to_tflite,
    torch_train,
)
from optkit.passes.torch_qat import PASS
from optkit.plugin import Pass
from optkit.runners import onnx_runner, openvino_runner, torch_runner
from optkit.testing import ListSamples

ZOO = qat_zoo.__file__
ROOT = Path(__file__).parents[2]
IMAGE = TensorSpec("x", "float32", ("batch", 3, 16, 16))
RNG = np.random.default_rng(0)
IMAGES = ListSamples([{"x": RNG.standard_normal((3, 16, 16)).astype(np.float32)} for _ in range(120)])
WORDS = ListSamples([{"input_ids": RNG.integers(0, 50, 12)} for _ in range(120)])
QUICK: dict[str, Any] = {"epochs": 4, "lr": 2e-5}


def source(folder: Path, factory: str = "images", spec: TensorSpec = IMAGE, **rest: Any) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    path = kit.descriptor(folder, (spec,), f"{ZOO}:{factory}", ("scores",), **rest)
    return replace(kit.artifact(path), digest=factory)


@dataclass(frozen=True)
class Trained:
    """A model that was trained once, for several tests."""

    source: Artifact
    turn: Turn
    notes: dict[str, Any]

    @property
    def artifact(self) -> Artifact:
        return self.turn.artifact

    @property
    def record(self) -> torch_quantised.Quantised:
        found = torch_quantised.record_of(self.turn.out / "torch.json")
        assert found is not None
        return found

    def answers(self, feeds: dict[str, Any]) -> Any:
        model = torch_model.load(self.turn.out / "torch.json")
        return model.call({name: torch.from_numpy(value) for name, value in feeds.items()})["scores"].numpy()


def trained(folder: Path, teacher: Artifact, data: ListSamples, **options: Any) -> Trained:
    turn = Turn(PASS, teacher, folder, {**QUICK, **options}, data=data)
    return Trained(teacher, turn, turn.run())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("images")
    return trained(folder / "run", source(folder / "source"), IMAGES)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("words")
    return trained(folder / "run", source(folder / "source", "encoder", kit.IDS), WORDS, lr=1e-4)


def converted(use: Pass, of: Artifact, folder: Path, turn: Turn, options: dict[str, Any] | None = None) -> Artifact:
    """What a conversion makes of an artifact, confirmed."""
    out = folder / use.name
    (out / "scratch").mkdir(parents=True)
    (out / "out").mkdir()
    context = replace(turn.context, scratch=out / "scratch", data=None)
    chosen = use.options.model_validate(options or {})
    use.run(of, out / "out", chosen, context)
    runner = {"onnx": onnx_runner.RUNNER, "openvino": openvino_runner.RUNNER}[use.target]
    path = out / "out" / runner.main
    made = Artifact(use.target, path, use.name, runner.describe(path, {}), (path.name,))
    assert use.confirm is not None
    assert list(use.confirm(of, made, chosen, context)) == []
    return made


def ask(artifact: Artifact, feeds: dict[str, Any]) -> Any:
    runner = {"onnx": onnx_runner.RUNNER, "openvino": openvino_runner.RUNNER}[artifact.format]
    with runner.open(artifact) as session:
        return session.infer(feeds)["scores"]


def worst_cosine(got: Any, want: Any) -> float:
    return float(((got * want).sum(-1) / np.linalg.norm(got, axis=-1) / np.linalg.norm(want, axis=-1)).min())


def fused(path: Path, folder: Path) -> Counter[str]:
    """The operators that onnxruntime really runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "fused.onnx")
    options.log_severity_level = 3  # it warns that the file is for this machine
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "fused.onnx").graph.node)


def executed(path: Path) -> Counter[tuple[str, bool]]:
    """OpenVINO's convolutions and products as they run: kind, and whether on integers."""
    import openvino

    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    about = [node.get_rt_info() for node in model.get_runtime_model().get_ordered_ops()]
    return Counter(
        (info["layerType"].astype(str), info["runtimePrecision"].astype(str) in ("u8", "i8"))
        for info in about if info["layerType"].astype(str) in ("Convolution", "FullyConnected")
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ what it makes


def test_it_learns_and_says_what_it_quantised(images: Trained) -> None:
    notes = images.notes
    assert notes["held_out_loss"]["after"] < notes["held_out_loss"]["before"]
    assert notes["quantised"] == ["deep.0", "head", "last", "stem.0", "wide"]
    assert notes["left_float"] == {}
    assert notes["folded_batch_norms"] == 3
    assert notes["ranges"] == {"first_from": "lowest and highest value in 108 samples", "learned": True}
    stored = torch_structure.read_weights(images.turn.out / torch_structure.WEIGHTS)
    assert {str(t.dtype) for name, t in stored.items() if name.endswith("_quantised")} == {"torch.int8", "torch.int32"}
    assert not {"head.weight", "stem.1.weight"} & set(stored)  # nothing is stored in float beside its integers


def test_a_fresh_process_gives_the_same_answers(images: Trained) -> None:
    feeds = {"x": np.stack([s["x"] for s in IMAGES.items[:4]])}
    code = (
        "import sys, numpy, torch; from pathlib import Path; from optkit.formats.torch import model as torch_model\n"
        "x = torch.from_numpy(numpy.load(sys.argv[2]))\n"
        "numpy.save(sys.argv[3], torch_model.load(Path(sys.argv[1])).call({'x': x})['scores'].numpy())"
    )
    given, made = images.turn.out.parent / "x.npy", images.turn.out.parent / "y.npy"
    np.save(given, feeds["x"])
    subprocess.run(
        [sys.executable, "-c", code, str(images.turn.out / "torch.json"), str(given), str(made)], check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    np.testing.assert_allclose(np.load(made), images.answers(feeds), rtol=1e-6, atol=1e-6)


def test_convolutions_run_on_integers_in_both_runtimes(images: Trained, tmp_path: Path) -> None:
    feeds = {"x": RNG.standard_normal((32, 3, 16, 16)).astype(np.float32)}
    want = images.answers(feeds)
    file = converted(torch_to_onnx.PASS, images.artifact, tmp_path, images.turn)
    counts = fused(file.path, tmp_path)
    assert (counts["QLinearConv"], counts["Conv"], counts["FusedConv"]) == (4, 0, 0)
    assert (counts["QLinearAdd"], counts["QLinearConcat"], counts["QGemm"]) == (1, 1, 1)
    assert worst_cosine(ask(file, feeds), want) >= 0.9999
    for made in (converted(onnx_to_openvino.PASS, file, tmp_path, images.turn),
                 converted(torch_to_openvino.PASS, images.artifact, tmp_path, images.turn)):  # fmt: skip
        assert executed(made.path) == {("Convolution", True): 4, ("FullyConnected", True): 1}
        assert worst_cosine(ask(made, feeds), want) >= 0.9999


@pytest.fixture(scope="module")
def words_file(words: Trained, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return converted(torch_to_onnx.PASS, words.artifact, tmp_path_factory.mktemp("words-file"), words.turn)


def test_torchs_own_attention_runs_on_integers(tmp_path: Path) -> None:
    made = trained(tmp_path / "run", source(tmp_path / "source", "torchs", kit.IDS), WORDS)
    assert made.notes["left_float"] == {"it looks its table up and multiplies nothing": ["words"]}
    inner = [f"layer.self_attn.{name}" for name in ("k_proj", "out_proj", "q_proj", "v_proj")]
    assert made.notes["quantised"] == ["head", "layer.linear1", "layer.linear2", *inner]
    feeds = {"input_ids": RNG.integers(0, 50, (16, 12))}
    want = made.answers(feeds)
    for use in (torch_to_onnx.PASS, torch_to_openvino.PASS):
        file = converted(use, made.artifact, tmp_path, made.turn)
        assert worst_cosine(ask(file, feeds), want) >= 0.999
    assert executed(file.path) == {("FullyConnected", True): 7}


def test_a_layer_that_no_output_needs_stays_float_as_exporters_leave_it_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)  # its own, so that no other test decides what is learned
    vector = TensorSpec("x", "float32", ("batch", 8))
    data = ListSamples([{"x": rng.standard_normal(8).astype(np.float32)} for _ in range(120)])
    made = trained(tmp_path / "run", source(tmp_path / "source", "pools", vector), data, lr=1e-4)
    assert made.notes["left_float"] == {"no output depends on it": ["pooler"]}
    assert made.notes["quantised"] == ["added", "first", "head"]
    feeds = {"x": rng.standard_normal((16, 8)).astype(np.float32)}
    for use in (torch_to_onnx.PASS, torch_to_openvino.PASS):
        assert (
            worst_cosine(ask(converted(use, made.artifact, tmp_path, made.turn), feeds), made.answers(feeds)) >= 0.999
        )


def test_for_openvino_a_branch_is_not_rounded_before_it_is_added(images: Trained, tmp_path: Path) -> None:
    """As its kernels do it: then the answers are equal but for what is rounded to either side."""
    assert set(images.record.calls[":add:0"].operands) == {"0", "1"}
    made = trained(tmp_path / "run", images.source, IMAGES, **{"for": "openvino"})
    assert set(made.record.calls[":add:0"].operands) == {"0"}
    feeds = {"x": RNG.standard_normal((32, 3, 16, 16)).astype(np.float32)}
    file = converted(torch_to_openvino.PASS, made.artifact, tmp_path, made.turn)
    assert executed(file.path) == {("Convolution", True): 4, ("FullyConnected", True): 1}
    got, want = ask(file, feeds), made.answers(feeds)
    off = np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)
    assert np.median(off) < 1e-5
    assert worst_cosine(got, want) >= 0.9999


def test_products_over_sequences_run_on_integers(words: Trained, words_file: Artifact, tmp_path: Path) -> None:
    assert words.notes["quantised"] == ["down", "out", "qkv", "up"]
    assert words.notes["left_float"] == {
        "it looks its table up and multiplies nothing": ["words"],
        "its weight words.weight is used otherwise too": ["head"],
    }
    feeds = {"input_ids": RNG.integers(0, 50, (16, 12))}
    want = words.answers(feeds)
    assert fused(words_file.path, tmp_path)["MatMulIntegerToFloat"] == 4
    assert worst_cosine(ask(words_file, feeds), want) >= 0.9999
    for made in (converted(onnx_to_openvino.PASS, words_file, tmp_path, words.turn),
                 converted(torch_to_openvino.PASS, words.artifact, tmp_path, words.turn)):  # fmt: skip
        assert executed(made.path)["FullyConnected", True] == 4
        assert worst_cosine(ask(made, feeds), want) >= 0.9999


def test_weights_are_on_the_axis_of_their_outputs(words: Trained, words_file: Artifact) -> None:
    model = onnx.load(words_file.path)
    held = {t.name: t for t in model.graph.initializer}
    found = {node.input[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    node = found["up.weight_quantised"]
    tensor = onnx.numpy_helper.to_array(held["up.weight_quantised"])
    axis = next(a.i for a in node.attribute if a.name == "axis")
    assert (tensor.dtype, tensor.shape, axis) == (np.int8, (32, 128), 1)  # turned, as MatMul takes it
    assert onnx.numpy_helper.to_array(held[node.input[1]]).shape == (128,)


def test_tensorrt_gets_symmetric_int8_and_bias_in_float(tmp_path: Path) -> None:
    made = trained(tmp_path / "run", source(tmp_path / "source"), IMAGES, **{"for": "tensorrt", "epochs": 2})
    file = converted(torch_to_onnx.PASS, made.artifact, tmp_path, made.turn)
    model = onnx.load(file.path)
    held = {t.name: t for t in model.graph.initializer}
    kinds = {onnx_model.dtype_name(held[n].data_type) for node in model.graph.node for n in node.input[2:]
             if node.op_type in ("QuantizeLinear", "DequantizeLinear")}  # fmt: skip
    assert kinds == {"int8"}
    zeros = [onnx.numpy_helper.to_array(held[n]) for node in model.graph.node for n in node.input[2:]
             if node.op_type in ("QuantizeLinear", "DequantizeLinear")]  # fmt: skip
    assert not any(zero.any() for zero in zeros)
    assert all(t.data_type != onnx.TensorProto.INT32 for t in held.values())
    feeds = {"x": RNG.standard_normal((8, 3, 16, 16)).astype(np.float32)}
    assert worst_cosine(ask(file, feeds), made.answers(feeds)) >= 0.9999


def test_one_scale_per_weight_seven_bits_fixed_ranges_and_layers_that_stay(tmp_path: Path) -> None:
    options = {"per_channel": False, "reduce_range": True, "learn_ranges": False, "keep": ["head", "de*"], "epochs": 2}
    made = trained(tmp_path / "run", source(tmp_path / "source"), IMAGES, **options)
    assert made.notes["quantised"] == ["last", "stem.0", "wide"]
    assert made.notes["left_float"] == {"kept": ["deep.0", "head"]}
    stored = torch_structure.read_weights(made.turn.out / torch_structure.WEIGHTS)
    assert {t.numel() for name, t in stored.items() if name.endswith("weight_scale")} == {1}
    assert max(int(t.abs().max()) for name, t in stored.items() if name.endswith("weight_quantised")) == 63
    feeds = {"x": RNG.standard_normal((8, 3, 16, 16)).astype(np.float32)}
    file = converted(torch_to_onnx.PASS, made.artifact, tmp_path, made.turn)
    assert worst_cosine(ask(file, feeds), made.answers(feeds)) >= 0.9999


def test_a_pruned_model_is_quantised_in_its_own_shape(tmp_path: Path) -> None:
    teacher = source(tmp_path / "source")
    model = torch_model.load(teacher.path)
    stay = list(range(0, 24, 2))
    joined = stay + list(range(24, 40))
    stage = Stage(
        {"wide.weight": {0: stay}, "wide.bias": {0: stay}, "last.weight": {1: joined},
         **{f"norm.{name}": {0: stay} for name in ("weight", "bias", "running_mean", "running_var")}},
        {"wide": {"out_channels": 12}, "norm": {"num_features": 12}, "last": {"in_channels": 28}},
    )  # fmt: skip
    (tmp_path / "pruned").mkdir()
    torch_structure.cut(model.source.module, stage)
    torch_structure.save(model.source.module, torch_model.read_descriptor(teacher.path), "t", [stage],
                         tmp_path / "pruned")  # fmt: skip
    path = tmp_path / "pruned" / "torch.json"
    parent = Artifact("torch", path, "p", kit.describe(path))
    turn = Turn(PASS, teacher, tmp_path / "run", {"epochs": 3, "lr": 0.002}, parent=parent, data=IMAGES)
    notes = turn.run()
    assert notes["held_out_loss"]["after"] < notes["held_out_loss"]["before"] / 1.5  # it learns what it lost, too
    file = converted(torch_to_onnx.PASS, turn.artifact, tmp_path, turn)
    held = {t.name: list(t.dims) for t in onnx.load(file.path).graph.initializer}
    assert held["wide.weight_quantised"] == [12, 16, 1, 1]


# ------------------------------------------------------------------------------------------------ against no training


def test_it_beats_quantisation_without_training_where_that_is_hard(tmp_path: Path) -> None:
    """The digits CNN with 7-bit weights, one scale each, judged on other samples, on onnxruntime."""
    spec = TensorSpec("image", "float32", ("batch", 1, 32, 32), "NCHW", (0, 1))
    models = ROOT / "recipes" / "models"
    (tmp_path / "source").mkdir()
    path = kit.descriptor(tmp_path / "source", (spec,), f"{models}/digits.py:build", ("scores",),
                          weights=str(models / "digits.safetensors"))  # fmt: skip
    teacher = kit.artifact(path)
    learn = ListSamples([{"image": x} for x in np.load(ROOT / "calibration" / "digits-train.npz")["image"][:320]])
    judge = {"image": np.load(ROOT / "calibration" / "digits-judge.npz")["image"]}
    hard = {"per_channel": False, "reduce_range": True}
    turn = Turn(PASS, teacher, tmp_path / "run", {"steps": 20, **hard}, data=learn)
    turn.run()
    ours = converted(torch_to_onnx.PASS, turn.artifact, tmp_path / "qat", turn)
    plain = converted(torch_to_onnx.PASS, teacher, tmp_path / "plain", turn)
    (tmp_path / "ptq" / "scratch").mkdir(parents=True)
    context = replace(turn.context, scratch=tmp_path / "ptq" / "scratch")
    onnx_quantize.PASS.run(plain, tmp_path / "ptq", onnx_quantize.PASS.options.model_validate(hard), context)
    file = tmp_path / "ptq" / "model.onnx"
    theirs = Artifact("onnx", file, "ptq", onnx_runner.RUNNER.describe(file, {}), (file.name,))
    want = ask(plain, judge)
    off = [float(np.mean(np.linalg.norm(ask(made, judge) - want, axis=1) / np.linalg.norm(want, axis=1)))
           for made in (ours, theirs)]  # fmt: skip
    assert off[0] < 0.8 * off[1]


# ------------------------------------------------------------------------------------------------ killed


def test_equal_seeds_give_equal_bytes_and_others_do_not(images: Trained, tmp_path: Path) -> None:
    again = trained(tmp_path / "again", images.source, IMAGES)
    assert again.turn.weights == images.turn.weights
    assert (again.turn.out / "quantised.json").read_bytes() == (images.turn.out / "quantised.json").read_bytes()
    other = Turn(PASS, images.source, tmp_path / "other", QUICK, data=IMAGES, seed=1)
    other.run()
    assert other.weights != images.turn.weights


def test_stopped_again_and_again_it_ends_with_the_same_bytes(images: Trained, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    steps = images.notes["steps"]
    for stop in (1, 4, 5, steps - 1):  # at the first step, at both sides of an epoch's end, near the last
        turn = Turn(PASS, images.source, tmp_path / f"to-{stop}", {**QUICK, "checkpoint_seconds": 0}, data=IMAGES,
                    kept=tmp_path / "kept")  # fmt: skip

        def tell(text: str, fraction: float | None, stop: int = stop) -> None:
            if fraction is not None and round(fraction * steps) >= stop:
                raise KeyboardInterrupt

        turn.context = replace(turn.context, progress=tell)
        with pytest.raises(KeyboardInterrupt):
            turn.run()
    rest = Turn(PASS, images.source, tmp_path / "rest", {**QUICK, "checkpoint_seconds": 0}, data=IMAGES,
                kept=tmp_path / "kept")  # fmt: skip
    assert rest.run()["resumed_at_step"] >= steps - 2
    assert rest.weights == images.turn.weights


# ------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(("factory", "options", "what", "hint"), [
    ("images", {"keep": ["haed"]}, "no layer is called 'haed'", "did you mean 'head'"),
    ("images", {"keep": ["*"]}, "nothing in the model can be quantised", "keep fewer layers"),
    ("images", {"lr": 0.3, "optimizer": "sgd", "schedule": "constant", "epochs": 1},
     "nothing was learned: the held-out loss was .* at first", "onnx.quantize does as well"),
    ("writes", {}, "gradient cannot be computed", "in place of"),
    ("attends", {}, "nothing in the model can be quantised", ""),
    ("images", {"losses": [{"kind": "kl", "output": "score"}]}, "no float output 'score'", "did you mean 'scores'"),
])  # fmt: skip
def test_what_cannot_be(tmp_path: Path, factory: str, options: dict[str, Any], what: str, hint: str) -> None:
    spec, data = (IMAGE, IMAGES) if factory == "images" else (kit.X, distill_kit.DATA)
    teacher = source(tmp_path / "source", factory, spec)
    with pytest.raises(StepError, match=what) as caught:
        Turn(PASS, teacher, tmp_path / "run", {**QUICK, **options}, data=data).run()
    assert caught.value.hint
    assert hint in caught.value.hint


def test_without_data_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data to learn from"):
        Turn(PASS, source(tmp_path / "source"), tmp_path / "run", QUICK, data=None).run()


@pytest.mark.parametrize(("use", "options", "hint"), [
    (torch_prune.PASS, {"remove_macs": 0.2}, "put torch.prune before torch.qat"),
    (torch_distill.PASS, {}, "put torch.distill before torch.qat"),
    (torch_train.PASS, {"call": f"{ZOO}:images"}, "put torch.train before torch.qat"),
    (PASS, {}, "put another torch.qat before torch.qat"),
    (torch_to_tflite.PASS, {}, "tflite.quantize"),
    (torch_to_onnx.PASS, {"exporter": "torchscript"}, "leave out `exporter: torchscript`"),
], ids=lambda value: value.name if isinstance(value, Pass) else "")  # fmt: skip
def test_what_cannot_follow_says_so(
    images: Trained, tmp_path: Path, use: Pass, options: dict[str, Any], hint: str
) -> None:
    turn = Turn(use, images.source, tmp_path, options, parent=images.artifact, data=IMAGES)
    with pytest.raises(StepError, match="fake quantisers") as caught:
        turn.run()
    assert caught.value.hint
    assert hint in caught.value.hint
    assert list(turn.out.iterdir()) == []


def test_torch_runs_it_in_float64_and_does_not_pretend_to_compile_it(images: Trained) -> None:
    feeds = {"x": np.stack([s["x"] for s in IMAGES.items[:4]])}
    with torch_runner.RUNNER.open(images.artifact, precision="float64") as session:
        assert worst_cosine(session.infer(feeds)["scores"], images.answers(feeds)) >= 0.9999
    compiled = replace(images.artifact, meta={"runtime": {"compile": True}})
    with pytest.raises(UnavailableError, match="fake quantisers"), torch_runner.RUNNER.open(compiled):
        pass


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda text: text[: len(text) // 2], "quantised.json is damaged"),
        (lambda text: text.replace('"version": 1', '"version": 9'), "is of version 9"),
        (lambda text: text.replace('"head.weight"', '"haed.weight"'), "built otherwise than when it was quantised"),
    ],
)
def test_a_damaged_record_is_named(images: Trained, tmp_path: Path, damage: Callable[[str], str], what: str) -> None:
    for path in images.turn.out.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    record = tmp_path / "quantised.json"
    record.write_text(damage(record.read_text()))
    with pytest.raises(OptkitError, match=what):
        torch_model.load(tmp_path / "torch.json")


def test_weights_written_over_are_found_out(images: Trained, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    turn = Turn(PASS, images.source, tmp_path, QUICK, data=IMAGES)
    turn.run()
    state = load_file(turn.out / "weights.safetensors")
    state["head.weight_quantised"] //= 2
    save_file(state, turn.out / "weights.safetensors")
    assert PASS.confirm is not None
    complaints = PASS.confirm(images.source, turn.artifact, turn.options, turn.context)
    assert any("its held-out loss is" in text for text in complaints)


def test_the_record_says_all_that_is_rounded(images: Trained) -> None:
    data = json.loads((images.turn.out / "quantised.json").read_text())
    assert json.loads(json.dumps(torch_quantised.Quantised.from_json(data).to_json())) == data
    assert data["folded"] == [["stem.0", "stem.1"], ["deep.0", "deep.1"], ["wide", "norm"]]
    assert {grid["kind"] for grid in data["activations"].values()} == {"uint8"}
    assert "stem.2:hardtanh:0" not in data["calls"]  # the convolution's kernel does it along the way
