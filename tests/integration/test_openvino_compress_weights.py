"""openvino.compress_weights: weights in 8 and 4 bits, with and without data, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openvino_models import (
    IMAGE,
    TOKENS,
    Streamed,
    cnn,
    context,
    converted,
    encoder,
    finished,
    infer,
    ops,
    ov,
    relu,
    sentences,
    sqnr_db,
    weight,
    written,
)

from optkit.artifact import Artifact
from optkit.errors import DataError, OptkitError, StepError
from optkit.formats.openvino import model as openvino_model
from optkit.passes.openvino_compress_weights import PASS
from optkit.plugin import Context


@pytest.fixture
def encoded(tmp_path: Path) -> Artifact:
    return written(encoder(), tmp_path / "in", TOKENS)


def bare(tmp_path: Path, data: Any = None) -> Context:
    return context(tmp_path, TOKENS, outputs=("scores",), data=data)


def refused(source: Artifact, ctx: Context, **options: Any) -> OptkitError:
    with pytest.raises(OptkitError) as caught:
        PASS.run(source, ctx.scratch, PASS.options(**options), ctx)
    return caught.value


@pytest.mark.parametrize(
    ("options", "stored", "least_db"),
    [
        # The noise of uniform rounding to b bits is 6 dB a bit under a full-scale signal; normal weights use a
        # quarter of the scale, so 8 bits leave some 40 dB, and 4 bits in groups some 15 to 20
        ({}, {"uint8": 6}, 35),
        ({"mode": "int8_sym"}, {"int8": 6}, 35),
        ({"mode": "int4_sym", "group_size": 16}, {"int4": 5, "uint8": 1}, 12),
        ({"mode": "int4_asym", "group_size": 16, "all_layers": True}, {"uint4": 6}, 12),
        ({"mode": "int4_sym", "group_size": -1}, {"int4": 5, "uint8": 1}, 8),
        ({"mode": "int4_sym", "group_size": 16, "ratio": 0.5}, {"int4": 2, "uint8": 4}, 12),
    ],
)
def test_stores_weights_in_the_bits_asked_for(
    encoded: Artifact, tmp_path: Path, options: dict[str, Any], stored: dict[str, int], least_db: float
) -> None:
    made, notes = converted(PASS, encoded, tmp_path / "out", bare(tmp_path), **options)
    assert notes["compressed"] == stored
    found = openvino_model.inspect(made.path)["compressed"]
    assert {kind: n for kind, n in found.items() if kind != "float16"} == stored
    assert made.signature == encoded.signature
    feed = sentences(1).make(5) | {}
    feed = {"tokens": feed["tokens"][None]}
    assert sqnr_db(infer(encoded, feed)["scores"], infer(made, feed)["scores"]) > least_db


def test_shrinks_the_weights_fourfold(encoded: Artifact, tmp_path: Path) -> None:
    made, _ = converted(PASS, encoded, tmp_path / "out", bare(tmp_path), mode="int8_sym")
    before, after = (openvino_model.inspect(item.path)["weight_bytes"] for item in (encoded, made))
    assert after["int8"] == 3 * 32 * 32 + 2 * 32 * 64 + 8 * 32
    assert after["int8"] * 4 <= before["float32"]


def gated() -> Any:
    """down(relu(gate(x)) * up(x)), as in a gated MLP, and a head: `(batch, length, 8)`."""
    tokens = ops.parameter([-1, -1, 32], ov.Type.f32, name="tokens")
    gate, up = (ops.matmul(tokens, weight(256, 32, seed=s), False, True, name=n) for s, n in ((1, "gate"), (2, "up")))
    down = ops.matmul(ops.multiply(up, ops.relu(gate)), weight(32, 256), False, True, name="down")
    return finished([ops.matmul(down, weight(8, 32), False, True, name="head")], [tokens], ["tokens"], ["scores"])


@pytest.mark.parametrize("method", ["awq", "gptq", "scale_estimation", "lora_correction"])
def test_methods_that_fit_on_data_change_the_weights(tmp_path: Path, method: str) -> None:
    source = written(gated(), tmp_path / "in", TOKENS)
    plain, _ = converted(PASS, source, tmp_path / "plain", bare(tmp_path), mode="int4_sym", group_size=16)
    data = sentences(12)
    options = {"mode": "int4_sym", "group_size": 16, "subset_size": 10, method: True}
    made, notes = converted(PASS, source, tmp_path / "out", bare(tmp_path, data), **options)
    assert notes["compressed"]["int4"] == 3
    assert made.path.with_suffix(".bin").read_bytes() != plain.path.with_suffix(".bin").read_bytes()
    assert {shape["tokens"][0] for shape in data.seen} == {1}
    assert data.peak <= 3


def test_awq_that_nncf_skips(encoded: Artifact, tmp_path: Path) -> None:
    error = refused(encoded, bare(tmp_path, sentences(4)), mode="int4_sym", group_size=16, awq=True)
    assert error.what.startswith("AWQ found nothing to scale")
    assert error.subject == "with.awq"


def test_data_chooses_the_layers_of_a_ratio(encoded: Artifact, tmp_path: Path) -> None:
    data = sentences(8)
    options = {"mode": "int4_sym", "group_size": 16, "ratio": 0.5}
    _, notes = converted(PASS, encoded, tmp_path / "out", bare(tmp_path, data), **options)
    assert notes["compressed"]["int4"] < 5
    assert len(data.seen) >= 8


def test_ignored_layers_stay_in_float(encoded: Artifact, tmp_path: Path) -> None:
    _, notes = converted(PASS, encoded, tmp_path / "out", bare(tmp_path), ignored={"names": ["head", "up"]})
    assert notes["compressed"] == {"uint8": 4}
    error = refused(encoded, bare(tmp_path), ignored={"names": ["haed"]})
    assert "did you mean 'head'" in error.hint


def test_the_same_run_gives_the_same_file(encoded: Artifact, tmp_path: Path) -> None:
    first, second = (converted(PASS, encoded, tmp_path / name, bare(tmp_path))[0] for name in ("a", "b"))
    for name in first.files:
        assert (first.path.parent / name).read_bytes() == (second.path.parent / name).read_bytes()


def test_a_group_size_that_does_not_divide_the_channels(encoded: Artifact, tmp_path: Path) -> None:
    error = refused(encoded, bare(tmp_path), mode="int4_sym", group_size=48)
    assert isinstance(error, StepError)
    assert error.what.startswith("group_size 48 does not divide the channels of 5 layers: ")
    assert "proj" in error.what
    assert "(32)" in error.what
    assert error.hint.startswith("group_size: 32, or")
    assert error.subject == "with.group_size"


def test_no_layer_compressed(tmp_path: Path) -> None:
    ctx = context(tmp_path, IMAGE, outputs=("logits",))
    error = refused(written(relu(), tmp_path / "relu", IMAGE), ctx)
    assert "no weight was compressed" in error.what
    model = written(cnn(), tmp_path / "cnn", IMAGE)
    assert "or all are ignored" in refused(model, ctx, ignored={"patterns": ["conv", "head"]}).what
    error = refused(model, ctx, mode="int4_sym", group_size=8)  # one linear layer, and it is the last
    assert "no weight was compressed to 4 bits" in error.what
    assert error.hint == "set all_layers: true"


def test_data_where_it_is_needed_and_only_there(encoded: Artifact, tmp_path: Path) -> None:
    assert PASS.wants_data(PASS.options(mode="int4_sym", awq=True))
    assert not PASS.wants_data(PASS.options(mode="int4_sym", ratio=0.5))
    error = refused(encoded, bare(tmp_path), mode="int4_sym", group_size=16, awq=True)
    assert isinstance(error, DataError)
    error = refused(encoded, bare(tmp_path, sentences(4)))
    assert error.what == "the step was given data, and with these options it uses none"
    assert error.subject == "data"
    error = refused(encoded, bare(tmp_path, sentences(4)), mode="int4_sym", group_size=16, awq=True, subset_size=9)
    assert error.what == "the dataset has 4 samples, 9 are needed"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"ratio": 0.5, "awq": True}, "ratio, awq: only for int4_sym and int4_asym, the mode is int8_asym"),
        ({"mode": "int4_sym", "gptq": True, "lora_correction": True}, "exclude each other"),
        ({"mode": "int4_sym", "group_size": 0}, "group_size is -1 or at least 2"),
        ({"mode": "int4_sym", "subset_size": 5}, "these options use no data"),
        ({"mode": "int3"}, "Input should be"),
    ],
)
def test_options_that_exclude_each_other(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        PASS.options(**options)


def test_prints_nothing(encoded: Artifact, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said: list[float] = []
    ctx = bare(tmp_path)
    ctx = type(ctx)(**(vars(ctx) | {"progress": lambda text, done: said.append(done)}))
    converted(PASS, encoded, tmp_path / "out", ctx)
    assert capfd.readouterr() == ("", "")
    assert (said[0], said[-1]) == (0.0, 1.0)


def test_confirm_sees_a_doctored_file(encoded: Artifact, tmp_path: Path) -> None:
    assert PASS.confirm is not None
    ctx = bare(tmp_path)
    size = encoded.path.with_suffix(".bin").stat().st_size
    complaints = PASS.confirm(encoded, encoded, PASS.options(), ctx)
    assert [text.split(":")[0] for text in complaints] == [
        "no weight was compressed",
        f"the weights have {size} bytes, the parent's {size}",
    ]
    eight, _ = converted(PASS, encoded, tmp_path / "out", ctx)
    (complaint,) = PASS.confirm(encoded, eight, PASS.options(mode="int4_sym"), ctx)
    assert complaint.startswith("no weight was compressed to 4 bits")


def test_smaller_feeds_than_the_subset_are_all_used(encoded: Artifact, tmp_path: Path) -> None:
    data = sentences(6)
    assert isinstance(data, Streamed)
    converted(
        PASS, encoded, tmp_path / "out", bare(tmp_path, data), mode="int4_sym", group_size=16, scale_estimation=True
    )
    assert len(data.seen) % 6 == 0
    assert np.all([shape["tokens"][2] == 32 for shape in data.seen])
