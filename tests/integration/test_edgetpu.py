"""tflite.to_edgetpu: what is looked at before the compiler is called, how its report is read, and what runs the result.

The compiler itself cannot be installed here. Where it is called, a stand-in prints its report and writes a file of its
name (tests/edgetpu_stand_in): what is tested with it is that the report is read and the exit code is not trusted. All
that is looked at before is tested on real files, made by torch.to_tflite and tflite.quantize.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tflite_kit import IMAGE, IMAGES, converted, described, images, infer
from torch import nn

from optkit.artifact import Artifact
from optkit.errors import NotHereError, OptkitError, SourceError, StepError, UnavailableError
from optkit.formats.edgetpu import file as edgetpu_file
from optkit.formats.edgetpu import rules as edgetpu_rules
from optkit.formats.edgetpu import session as edgetpu_session
from optkit.formats.tflite import model as tflite_model
from optkit.formats.tflite import session as tflite_session
from optkit.formats.tflite.model import Contract
from optkit.lints.linting import look
from optkit.passes import tflite_quantize
from optkit.passes.tflite_to_edgetpu import PASS, TfliteToEdgeTpu
from optkit.plugin import Context
from optkit.registry import format_of
from optkit.runners.edgetpu_runner import RUNNER

Made = tuple[Artifact, Context]


def quantised(source: Made, folder: Path, **options: Any) -> Made:
    parent, given = source
    (folder / "out").mkdir(parents=True)
    asked = tflite_quantize.TfliteQuantize(**options)
    needs = tflite_quantize.PASS.wants_data(asked)
    tflite_quantize.PASS.run(parent, folder / "out", asked, replace(given, data=IMAGES if needs else None))
    return described(folder / "out" / "model.tflite"), given


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A float file of one signature, for batch 1, channels last."""
    _, made, given, _ = converted(tmp_path_factory.mktemp("fixed"), "Conv", IMAGE, sizes={"batch": [1]}, layout="NHWC")
    return made, given


@pytest.fixture(scope="module")
def int8(fixed: Made, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return quantised(fixed, tmp_path_factory.mktemp("int8"), mode="static", io="int8")


def compiled(source: Made, folder: Path, **options: Any) -> tuple[Artifact, Any]:
    parent, given = source
    asked, out = TfliteToEdgeTpu(**options), folder / "compiled"
    out.mkdir()
    (scratch := folder / "scratch").mkdir()
    notes = PASS.run(parent, out, asked, replace(given, scratch=scratch))
    made = Artifact("edgetpu", out / RUNNER.main, "", RUNNER.describe(out / RUNNER.main, {}))
    assert PASS.confirm is not None
    assert PASS.confirm(parent, made, asked, given) == []
    return made, notes


def refused(source: Made, folder: Path, **options: Any) -> StepError:
    with pytest.raises(StepError) as caught:
        compiled(source, folder, **options)
    assert caught.value.hint
    return caught.value


# --- before the compiler


def test_a_full_integer_file_passes_and_the_missing_compiler_is_named_after_that(
    int8: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(edgetpu_rules.refusals(tflite_model.read(int8[0].path))) == []
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UnavailableError, match="the file qualifies, 5 of 5 operators, but edgetpu_compiler is not on PATH"
    ) as caught:
        compiled(int8, tmp_path)
    assert "Debian package edgetpu-compiler" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "what", "hint"),
    [
        ({"mode": "dynamic"}, "no operator computes in 8-bit integers", "mode: static, io: int8"),
        ({"mode": "int16x8"}, "no operator computes in 8-bit integers", "mode: static, io: int8"),
        ({"mode": "static"}, "2 of 7 operators would stay on the CPU: QUANTIZE 'batch_1/image_quantized': it turns "
                             "float32 into integers, which the CPU does (and 1 more)", "mode: static, io: int8"),
        ({"mode": "selective"}, "operators would stay on the CPU", "mode: static, io: int8"),
        ({"mode": "static", "io": "int8", "exclude": ["^second"]}, "would stay on the CPU", "mode: static"),
    ],
)  # fmt: skip
def test_what_is_not_full_integer(fixed: Made, tmp_path: Path, options: Any, what: str, hint: str) -> None:
    error = refused(quantised(fixed, tmp_path / "q", **options), tmp_path)
    assert what in error.what
    assert hint in error.hint


def test_the_operator_the_tensor_and_the_torch_module_are_named(fixed: Made, tmp_path: Path) -> None:
    source = quantised(fixed, tmp_path / "q", mode="static", io="int8", exclude=["^second"])
    error = refused(source, tmp_path)
    assert (
        "CONV_2D 'second:2' of the torch module second: it computes in float32, not in 8-bit integers" in error.details
    )
    found = look(source[0].path, "edgetpu")["refused"]
    assert {"node": "second:2", "operator": "CONV_2D", "module": "second"}.items() <= next(
        r for r in found if r["operator"] == "CONV_2D"
    ).items()


def test_sizes_that_vary_and_several_graphs(tmp_path: Path) -> None:
    resizable, given = converted(tmp_path / "a", "Conv", IMAGE)[1:3]
    error = refused(quantised((resizable, given), tmp_path / "qa", mode="static", io="int8"), tmp_path / "qa")
    assert error.what.startswith("an Edge TPU cannot take the file: 'image': axis 0 of the input can be resized")
    assert "sizes: {batch: [1]}" in error.hint
    two, given = converted(tmp_path / "b", "Conv", IMAGE, sizes={"batch": [1, 4]})[1:3]
    error = refused(quantised((two, given), tmp_path / "qb", mode="static", io="int8"), tmp_path / "qb")
    assert "the file holds 2 graphs (batch_1, batch_4), and the compiler takes one" in error.what


def changed(source: Made, folder: Path, change: Callable[[Any], object]) -> list[tuple[str, str]]:
    """Operator and reason of all that is refused of a file after a change to it."""
    model = tflite_model.read(source[0].path)
    change(model)
    tflite_model.write(model, folder / "model.tflite", tflite_model.contract(model))
    return [(r["operator"], r["what"]) for r in look_at(folder / "model.tflite")]


def look_at(path: Path) -> list[dict[str, Any]]:
    found = list(edgetpu_rules.refusals(tflite_model.read(path)))
    assert all(refusal.hint for refusal in found)
    return [refusal.to_json() for refusal in found]


def node(model: Any, name: str) -> Any:
    return next(n for n in edgetpu_rules._nodes(model) if n.name == name)


def test_limits_of_single_operators(int8: Made, tmp_path: Path) -> None:
    """Real files, each with one attribute changed to what the table of supported operations excludes."""

    def dilated(model: Any) -> None:
        node(model, "CONV_2D").op.builtinOptions.dilationWFactor = 2

    def packed(model: Any) -> None:
        node(model, "FULLY_CONNECTED").op.builtinOptions.weightsFormat = 1

    def over_the_batch(model: Any) -> None:
        mean = node(model, "MEAN")
        model.buffers[mean.inputs[1].buffer].data = np.array([0, 1], np.int32).view(np.uint8)

    def newer(model: Any) -> None:
        model.operatorCodes[node(model, "CONV_2D").op.opcodeIndex].version = 6

    def computed(model: Any) -> None:
        fed = node(model, "FULLY_CONNECTED")
        fed.op.inputs = [*fed.op.inputs[:1], fed.op.inputs[0], *fed.op.inputs[2:]]

    def batched(model: Any) -> None:
        node(model, "FULLY_CONNECTED").outputs[0].shape = [2, 4]

    assert changed(int8, tmp_path, lambda model: None) == []
    assert changed(int8, tmp_path, dilated) == [("CONV_2D", "its dilations along height and width differ")]
    assert changed(int8, tmp_path, packed) == [("FULLY_CONNECTED", "its weights are not in the default format")]
    assert changed(int8, tmp_path, over_the_batch) == [("MEAN", "it is taken over the batch")]
    assert changed(int8, tmp_path, newer) == [("CONV_2D", "it has version 6, and the compiler reads up to 5")]
    assert changed(int8, tmp_path, computed) == [
        ("FULLY_CONNECTED", "its weights or bias are computed, and must be constant")
    ]
    assert changed(int8, tmp_path, batched) == [("FULLY_CONNECTED", "its output (2, 4) has more than one axis above 1")]


class Odd(nn.Module):
    """Operators inside the table and outside of it, and inside of it but past their limits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.act = nn.GELU()

    def forward(self, image: Any) -> Any:
        hidden = self.act(self.conv(image))
        return hidden.softmax(-1).amax((2, 3)) + hidden.mean(1).mean((1, 2), keepdim=False)[:, None]


def test_a_model_with_operators_an_edge_tpu_has_not(tmp_path: Path) -> None:
    made, given = converted(tmp_path / "odd", f"{__file__}:Odd", IMAGE, sizes={"batch": [1]})[1:3]
    source = quantised((made, given), tmp_path / "q", mode="static", io="int8")
    found = {(r["operator"], r["what"]) for r in look_at(source[0].path)}
    assert ("GELU", "the Edge TPU has no such operator") in found
    assert next(r["module"] for r in look_at(source[0].path) if r["operator"] == "GELU") == "act"
    assert any(operator == "SOFTMAX" and "more than one axis above 1" in what for operator, what in found)
    error = refused(source, tmp_path)
    assert "would stay on the CPU" in error.what
    assert "allow_cpu: true" in look_at(source[0].path)[0]["hint"]


# --- the compiler's report


def test_the_report_is_read_and_kept(int8: Made, tmp_path: Path, edgetpu_stand_in: Path) -> None:
    made, notes = compiled(int8, tmp_path, min_runtime_version=13, search_delegate=True)
    report = notes["compiler"]
    assert (report["version"], report["on_tpu"], report["on_cpu"]) == ("16.0.384591198", 5, 0)
    assert {row["operator"]: row["count"] for row in report["operators"]} == {
        "CONV_2D": 2, "FULLY_CONNECTED": 1, "MEAN": 1, "TRANSPOSE": 1,
    }  # fmt: skip
    assert report["memory"]["On-chip memory used for caching model parameters"] == "1.25KiB"
    assert notes["file"]["batch_1"]["inputs"]["image"]["dtype"] == "int8"
    assert made.signature == int8[0].signature
    about = RUNNER.inspect(made.path)
    assert about["operators"]["CONV_2D (Mapped to Edge TPU)"] == 2
    assert about["channels_last"] == ["image"]
    assert format_of("x/model_edgetpu.tflite") == "edgetpu"
    assert format_of("x/model.tflite") == "tflite"
    assert PASS.machine is not None
    assert PASS.machine(TfliteToEdgeTpu()) == ["16.0.384591198"]


@pytest.mark.parametrize(
    ("how", "what", "hint"),
    [
        ("invalid", "edgetpu_compiler failed: Invalid model: ", "mode: static, io: int8"),
        ("newer", "Didn't find op for builtin opcode 'CONV_2D' version '6'", "older converter"),
        ("internal", "edgetpu_compiler failed: Internal compiler error. Aborting!", "search_delegate"),
        ("killed", "edgetpu_compiler ended with exit code 9", "by hand"),
        ("silent", "printed no table of operators", "versions 14 to 16"),
        ("wrong", "contradicts itself: total number of operations is 6, and its table has 5", "by hand"),
        ("none", "put none of 5 operators on the Edge TPU (CONV_2D: Operation is working on an unsupported data type",
         "optkit lint"),
        ("no file", "wrote no model_edgetpu.tflite, though it ended with exit code 0", "by hand"),
        ("partly", "left operators on the CPU: 2 CONV_2D: More than one subgraph is not supported", "allow_cpu"),
    ],
)  # fmt: skip
def test_its_exit_code_is_not_trusted(
    int8: Made, tmp_path: Path, edgetpu_stand_in: Path, monkeypatch: pytest.MonkeyPatch, how: str, what: str, hint: str
) -> None:
    monkeypatch.setenv("STAND_IN", how)
    error = refused(int8, tmp_path)
    assert what in error.what
    assert hint in error.hint
    assert list((tmp_path / "compiled").iterdir()) == []


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("untouched", "the file has no edgetpu-custom-op"),
        ("other ports", "the outputs are int8[1, 4], int8[1, 12, 10, 3]"),
    ],
)
def test_confirm_reads_the_compiled_file(
    int8: Made, tmp_path: Path, edgetpu_stand_in: Path, monkeypatch: pytest.MonkeyPatch, how: str, what: str
) -> None:
    monkeypatch.setenv("STAND_IN", how)
    with pytest.raises(AssertionError) as caught:
        compiled(int8, tmp_path)
    assert what in str(caught.value)
    assert PASS.confirm is not None
    made = Artifact("edgetpu", tmp_path / "compiled" / RUNNER.main, "")
    assert any(what in complaint for complaint in PASS.confirm(int8[0], made, TfliteToEdgeTpu(), int8[1]))


def test_the_cpu_may_be_allowed(
    fixed: Made, tmp_path: Path, edgetpu_stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = quantised(fixed, tmp_path / "q", mode="static")
    monkeypatch.setenv("STAND_IN", "partly")
    _, notes = compiled(source, tmp_path, allow_cpu=True)
    assert notes["compiler"]["on_cpu"] == 2
    assert [r["operator"] for r in notes["left_to_cpu"]] == ["QUANTIZE", "DEQUANTIZE"]


# --- running it


def test_without_an_edge_tpu_the_check_is_deferred(int8: Made, tmp_path: Path, edgetpu_stand_in: Path) -> None:
    made, _ = compiled(int8, tmp_path)
    for device in ("cpu", "edgetpu:1", "usb:0"):
        with pytest.raises(NotHereError, match=edgetpu_session.LIBRARY) as caught, RUNNER.open(made, device):
            pass
        assert caught.value.hint
    for options in ({"device": "cuda"}, {"precision": "float64"}):
        with pytest.raises(UnavailableError) as other, RUNNER.open(made, **options):
            pass
        assert other.value.hint
        assert type(other.value) is UnavailableError


def test_ports_go_by_position(int8: Made) -> None:
    """As a session on an Edge TPU does, here on the CPU with the file before it is compiled, without its signature."""
    model = tflite_model.read(int8[0].path)
    agreed = tflite_model.contract(model)
    ports = edgetpu_file.ports(model)
    assert ports == {"inputs": {"image": 0}, "outputs": {"output": 0}}
    session = tflite_session.TfliteSession(
        int8[0].path, agreed, 1,
        lambda: edgetpu_session.Positions(tflite_model.interpreter(int8[0].path), ports, "batch_1"), "Edge TPU",
    )  # fmt: skip
    assert session.provider == "Edge TPU; image float32 as int8; output float32 as int8; image channels last"
    feed = {"image": np.stack([s["image"] for s in images(5)])}
    np.testing.assert_array_equal(session.infer(feed)["output"], infer(int8[0], feed)["output"])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: (f / "edgetpu.json").unlink(), "has no edgetpu.json beside it"),
        (lambda f: (f / "edgetpu.json").write_text("{"), "edgetpu.json is damaged"),
        (lambda f: (f / "edgetpu.json").write_text('{"schema": 7}'), "schema 7, not 1"),
        (lambda f: (f / "model_edgetpu.tflite").write_bytes(b"x"), "has 1 bytes, its edgetpu.json says"),
        (lambda f: (f / "model_edgetpu.tflite").unlink(), "there is no file"),
    ],
)
def test_a_damaged_delivery(damage: Any, told: str, int8: Made, tmp_path: Path, edgetpu_stand_in: Path) -> None:
    made, _ = compiled(int8, tmp_path)
    damage(made.path.parent)
    for call in (lambda: RUNNER.describe(made.path, {}), lambda: RUNNER.inspect(made.path)):
        with pytest.raises(SourceError, match=told) as caught:
            call()
        assert caught.value.hint


def test_changed_bytes(int8: Made, tmp_path: Path, edgetpu_stand_in: Path) -> None:
    made, _ = compiled(int8, tmp_path)
    data = bytearray(made.path.read_bytes())
    data[len(data) // 2] ^= 1
    made.path.write_bytes(data)
    with pytest.raises(SourceError, match="its bytes have changed"), RUNNER.open(made):
        pass
    with pytest.raises(SourceError, match="its bytes have changed"):
        RUNNER.inspect(made.path)


def test_a_compiled_file_is_no_tflite_model(int8: Made, tmp_path: Path, edgetpu_stand_in: Path) -> None:
    from optkit.runners.tflite_runner import RUNNER as TFLITE

    made, _ = compiled(int8, tmp_path)
    model = tflite_model.read(made.path)
    agreed = Contract.from_json(json.loads((made.path.parent / "edgetpu.json").read_text())["contract"])
    path = tmp_path / "renamed.tflite"
    tflite_model.write(model, path, agreed)
    with pytest.raises(OptkitError) as caught, TFLITE.open(Artifact("tflite", path, "")):
        pass
    assert caught.value.hint
    assert path.name in caught.value.what
