"""openvino.quantize: what NNCF is asked to do, what it did, and what is refused."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from openvino_models import (
    IMAGE,
    TOKENS,
    Streamed,
    artifact,
    cnn,
    context,
    converted,
    encoder,
    finished,
    images,
    infer,
    ops,
    ov,
    relu,
    sentences,
    sqnr_db,
    weight,
    written,
)

from optkit.artifact import Artifact, Dim, TensorSpec
from optkit.errors import DataError, OptkitError, StepError
from optkit.formats.openvino import model as openvino_model
from optkit.formats.openvino import nncf as openvino_nncf
from optkit.passes.openvino_compress_weights import PASS as COMPRESS
from optkit.passes.openvino_quantize import PASS

if TYPE_CHECKING:
    from optkit.plugin import Context, Tensors


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Artifact, Context]:
    """The CNN and a context with 24 images."""
    data = images(24)
    return written(cnn(), tmp_path / "in", IMAGE), context(tmp_path, IMAGE, outputs=("logits",), data=data)


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Artifact, Context]:
    """The encoder and a context with 16 sequences of unequal length."""
    data = sentences(16)
    return written(encoder(), tmp_path / "in", TOKENS), context(tmp_path, TOKENS, outputs=("scores",), data=data)


def refused(pair: tuple[Artifact, Context], tmp_path: Path, **options: Any) -> OptkitError:
    with pytest.raises(OptkitError) as caught:
        PASS.run(pair[0], tmp_path, PASS.options(**options), pair[1])
    return caught.value


def test_quantises_every_layer_and_keeps_the_signature(pictures: tuple[Artifact, Context], tmp_path: Path) -> None:
    source, ctx = pictures
    made, notes = converted(PASS, source, tmp_path / "out", ctx)
    found = openvino_model.inspect(made.path)
    assert found["fake_quantize"] == notes["fake_quantize"] == 4  # image, two activations, pooled features
    assert found["compressed"] == {"int8": 3}
    assert found["weight_bytes"]["int8"] == 8 * 27 + 16 * 72 + 160
    assert (notes["samples"], notes["smoothed"], notes["warnings"]) == (24, 0, [])
    assert made.signature == source.signature


def test_what_is_quantised_already_is_not_rounded_again(pictures: tuple[Artifact, Context], tmp_path: Path) -> None:
    source, ctx = pictures
    made, _ = converted(PASS, source, tmp_path / "once", ctx)
    packed, _ = converted(COMPRESS, source, tmp_path / "packed", replace(ctx, data=None))
    for one in (made, packed):
        error = refused((one, ctx), tmp_path)
        assert (error.what, error.subject) == ("the model is quantised already", "from")
    with pytest.raises(StepError, match="all that NNCF takes are integers already"):
        converted(COMPRESS, packed, tmp_path / "twice", replace(ctx, data=None))


def test_stays_near_the_float_model_on_images_it_has_not_seen(
    pictures: tuple[Artifact, Context], tmp_path: Path
) -> None:
    source, ctx = pictures
    image = np.random.default_rng(999).standard_normal((8, 3, 16, 16)).astype(np.float32)
    wanted = infer(source, {"image": image})["logits"]
    for name, options in (("fast", {}), ("slow", {"fast_bias_correction": False}), ("mixed", {"preset": "mixed"})):
        made, _ = converted(PASS, source, tmp_path / name, ctx, **options)
        found = infer(made, {"image": image})["logits"]
        # 8 bits are 50 dB at best; three layers of per-tensor activations with outliers cost 15 to 20 of them
        assert 25 < sqnr_db(wanted, found) < 60


def test_the_same_run_gives_the_same_file(pictures: tuple[Artifact, Context], tmp_path: Path) -> None:
    source, ctx = pictures
    first, second = (converted(PASS, source, tmp_path / name, ctx)[0] for name in ("a", "b"))
    for name in first.files:
        assert (first.path.parent / name).read_bytes() == (second.path.parent / name).read_bytes()


def test_a_transformer_is_smoothed_and_fed_at_its_natural_lengths(
    texts: tuple[Artifact, Context], tmp_path: Path
) -> None:
    source, ctx = texts
    assert isinstance(ctx.data, Streamed)
    made, notes = converted(PASS, source, tmp_path / "on", ctx, model_type="transformer")
    assert notes["smoothed"] > 0
    lengths = [3 + index % 8 for index in range(16)]
    assert [shape["tokens"] for shape in ctx.data.seen] == 2 * [(1, length, 32) for length in lengths]
    plain, off = converted(PASS, source, tmp_path / "off", ctx, model_type="transformer", smooth_quant=False)
    assert off["smoothed"] == 0
    feed = {"tokens": sentences(40).make(33)["tokens"][None]}
    wanted = infer(source, feed)["scores"]
    assert sqnr_db(wanted, infer(made, feed)["scores"]) > sqnr_db(wanted, infer(plain, feed)["scores"]) + 3


def test_alpha_is_used(texts: tuple[Artifact, Context], tmp_path: Path) -> None:
    source, ctx = texts
    files = [
        converted(PASS, source, tmp_path / str(alpha), ctx, model_type="transformer", smooth_quant_alpha=alpha)[0]
        for alpha in (0.2, 0.8)
    ]
    assert files[0].path.with_suffix(".bin").read_bytes() != files[1].path.with_suffix(".bin").read_bytes()


def test_each_range_estimator_is_used(pictures: tuple[Artifact, Context], tmp_path: Path) -> None:
    source, ctx = pictures
    weights = {}
    for name in ("minmax", "mean_minmax", "median_minmax", "mean_no_outliers", "quantile", "histogram"):
        made, _ = converted(PASS, source, tmp_path / name, ctx, range_estimator=name)
        weights[name] = made.path.with_suffix(".bin").read_bytes()
    assert len(set(weights.values())) == len(weights)


@pytest.mark.parametrize(
    "ignored", [{"names": ["conv1"]}, {"types": ["MatMul"]}, {"patterns": [".*ead"]}, {"patterns": ["conv", "head"]}]
)
def test_ignored_operators_stay_in_float(
    pictures: tuple[Artifact, Context], tmp_path: Path, ignored: dict[str, list[str]]
) -> None:
    source, ctx = pictures
    if ignored == {"patterns": ["conv", "head"]}:  # the pool is left, whose int8 has no weights
        options = PASS.options(ignored=ignored)
        (tmp_path / "out").mkdir()
        PASS.run(source, tmp_path / "out", options, ctx)
        assert PASS.confirm is not None
        assert PASS.confirm(source, artifact(tmp_path / "out"), options, ctx) == ["the file has no int8 weights"]
        return
    made, _ = converted(PASS, source, tmp_path / "out", ctx, ignored=ignored)
    assert openvino_model.inspect(made.path)["compressed"] == {"int8": 2}


@pytest.mark.parametrize(
    ("ignored", "what", "hint"),
    [
        ({"names": ["conv2"]}, "no operator name 'conv2'", "did you mean 'conv1'"),
        ({"types": ["Convolutoin"]}, "no operator type 'Convolutoin'", "did you mean 'Convolution'"),
        ({"patterns": ["onv"]}, "'onv' matches no operator name from its start", "did you mean 'conv"),
        ({"patterns": ["conv("]}, "'conv(' is not a regular expression", "escape"),
    ],
)
def test_ignored_entries_that_match_nothing(
    pictures: tuple[Artifact, Context], tmp_path: Path, ignored: dict[str, list[str]], what: str, hint: str
) -> None:
    error = refused(pictures, tmp_path, ignored=ignored)
    assert isinstance(error, StepError)
    assert what in error.what
    assert hint in error.hint
    assert error.subject == "with.ignored"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"smooth_quant": True}, "smooth_quant needs model_type: transformer"),
        ({"smooth_quant_alpha": 0.5}, "smooth_quant needs model_type: transformer"),
        ({"model_type": "transformer", "smooth_quant": False, "smooth_quant_alpha": 0.5}, "but smooth_quant is false"),
        ({"subset_size": 0}, "greater than or equal to 1"),
        ({"ignored": {"name": ["x"]}}, "Extra inputs"),
    ],
)
def test_options_that_exclude_each_other(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        PASS.options(**options)


def test_smooth_quant_that_finds_nothing(tmp_path: Path) -> None:
    image = ops.parameter([-1, 3, 16, 16], ov.Type.f32, name="image")
    convolved = ops.convolution(image, weight(4, 3, 3, 3), [1, 1], [0, 0], [0, 0], [1, 1])
    source = written(finished([convolved], [image], ["image"], ["logits"]), tmp_path / "in", IMAGE)
    ctx = context(tmp_path, IMAGE, outputs=("logits",), data=images(4))
    for asked in ({"smooth_quant": True}, {"smooth_quant_alpha": 0.5}):
        error = refused((source, ctx), tmp_path, model_type="transformer", **asked)
        assert error.what == "SmoothQuant found nothing to smooth"


def test_nothing_to_quantise(tmp_path: Path) -> None:
    ctx = context(tmp_path, IMAGE, outputs=("logits",), data=images(4))
    error = refused((written(relu(), tmp_path / "in", IMAGE), ctx), tmp_path)
    assert "quantised nothing" in error.what
    error = refused(
        (written(cnn(), tmp_path / "in", IMAGE), ctx), tmp_path, ignored={"patterns": ["conv", "head", "pool"]}
    )
    assert (error.subject, error.hint) == ("with.ignored", "ignore less")


def test_subset_size_and_too_few_samples(pictures: tuple[Artifact, Context], tmp_path: Path) -> None:
    source, ctx = pictures
    assert isinstance(ctx.data, Streamed)
    _, notes = converted(PASS, source, tmp_path / "out", ctx, subset_size=5)
    assert (notes["samples"], len(ctx.data.seen)) == (5, 5)
    error = refused(pictures, tmp_path, subset_size=25)
    assert isinstance(error, DataError)
    assert error.what == "the dataset has 24 samples, 25 are needed"
    assert error.subject == "with.subset_size"


@pytest.mark.parametrize("count", [None, 0])
def test_no_data(tmp_path: Path, count: int | None) -> None:
    data = None if count is None else images(count)
    ctx = context(tmp_path, IMAGE, outputs=("logits",), data=data)
    error = refused((written(cnn(), tmp_path / "in", IMAGE), ctx), tmp_path)
    assert isinstance(error, DataError)
    assert error.subject == "data"


def test_samples_under_another_name(tmp_path: Path) -> None:
    data = Streamed(lambda index: {"pixels": np.zeros((3, 16, 16), np.float32)}, 4)
    ctx = context(tmp_path, IMAGE, outputs=("logits",), data=data)
    error = refused((written(cnn(), tmp_path / "in", IMAGE), ctx), tmp_path)
    assert error.what == "the samples have pixels, the model's inputs are image"


@pytest.mark.parametrize("threads", [1, 2])
def test_samples_the_model_cannot_run(tmp_path: Path, threads: int) -> None:
    left, right = (ops.parameter([-1, -1], ov.Type.f32, name=name) for name in ("left", "right"))
    product = ops.matmul(ops.matmul(left, right, False, False), weight(4, 4), False, True)
    specs = [TensorSpec("left", "float32", ("batch", "length")), TensorSpec("right", "float32", ("batch", "length"))]
    source = written(finished([product], [left, right], ["left", "right"], ["out"]), tmp_path / "in", *specs)
    feed = {"left": np.zeros(3, np.float32), "right": np.zeros(4, np.float32)}
    ctx = context(tmp_path, *specs, outputs=("out",), data=Streamed(lambda _: feed, 4), threads=threads)
    error = refused((source, ctx), tmp_path)
    assert isinstance(error, StepError)
    assert error.what.startswith("NNCF failed: ")
    assert isinstance(error.__cause__, RuntimeError)


def test_errors_of_the_dataset_itself_pass(tmp_path: Path) -> None:
    def broken(index: int) -> Tensors:
        raise DataError("sample 0 is damaged")

    ctx = context(tmp_path, IMAGE, outputs=("logits",), data=Streamed(broken, 4))
    assert refused((written(cnn(), tmp_path / "in", IMAGE), ctx), tmp_path).what == "sample 0 is damaged"


def test_a_fixed_batch_is_fed_whole(tmp_path: Path) -> None:
    model = cnn()
    model.reshape([4, 3, 16, 16])
    spec = TensorSpec("image", "float32", (4, 3, 16, 16))
    data = images(11)
    made, notes = converted(
        PASS,
        written(model, tmp_path / "in", spec),
        tmp_path / "out",
        context(tmp_path, spec, outputs=("logits",), data=data),
    )
    assert [shape["image"] for shape in data.seen] == 2 * [(4, 3, 16, 16)]
    assert notes["samples"] == 8
    assert made.signature is not None
    assert made.signature.outputs[0].shape == (4, 10)


@pytest.mark.parametrize(
    ("options", "most"),
    [({}, 3), ({"range_estimator": "histogram"}, 3), ({"fast_bias_correction": False}, 24 // 5 + 3)],
)
def test_samples_are_streamed(
    pictures: tuple[Artifact, Context], tmp_path: Path, options: dict[str, Any], most: int
) -> None:
    source, ctx = pictures
    assert isinstance(ctx.data, Streamed)
    converted(PASS, source, tmp_path / "out", ctx, **options)
    assert len(ctx.data.seen) == 24  # once: a CNN has one phase of statistics
    assert ctx.data.peak <= most


def test_what_nncf_remembers_has_a_bound(pictures: tuple[Artifact, Context], tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Fewer values remembered than there are samples: the same ranges within a little."""
    source, ctx = pictures
    held: list[int] = []
    whole, _ = converted(PASS, source, tmp_path / "whole", ctx, range_estimator="quantile")
    monkeypatch.setattr(openvino_nncf, "REMEMBERED", 6)
    from nncf.common.tensor_statistics.collectors import OfflineAggregatorBase

    aggregate = OfflineAggregatorBase._aggregate_impl

    def counting(self: Any) -> Any:
        held.append(len(self._container))
        return aggregate(self)

    monkeypatch.setattr(OfflineAggregatorBase, "_aggregate_impl", counting)
    few, _ = converted(PASS, source, tmp_path / "few", ctx, range_estimator="quantile")
    assert max(held) == 6  # of 24: every fourth
    for index in range(100, 104):
        feed = {"image": images(1).make(index)["image"][None]}
        assert sqnr_db(infer(source, feed)["logits"], infer(few, feed)["logits"]) > 20
    assert few.path.with_suffix(".bin").read_bytes() != whole.path.with_suffix(".bin").read_bytes()


def test_full_bias_correction_holds_few_samples(pictures: tuple[Artifact, Context], tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    source, ctx = pictures
    assert isinstance(ctx.data, Streamed)
    monkeypatch.setattr(openvino_nncf, "HELD", 1)
    converted(PASS, source, tmp_path / "out", ctx, fast_bias_correction=False)
    assert ctx.data.peak <= 1 + 3


def test_reports_progress_and_prints_nothing(
    pictures: tuple[Artifact, Context], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, ctx = pictures
    said: list[tuple[str, float | None]] = []
    ctx = type(ctx)(**(vars(ctx) | {"progress": lambda text, done: said.append((text, done))}))
    converted(PASS, source, tmp_path / "out", ctx)
    parts = [done for _, done in said if done is not None]
    assert parts == sorted(parts)
    assert (parts[0], parts[-1]) == (0.0, 1.0)
    assert "statistics collection 24/24" in [text for text, _ in said]
    assert capfd.readouterr() == ("", "")


def test_puts_back_what_it_changed_in_nncf(pictures: tuple[Artifact, Context], tmp_path: Path) -> None:
    def state() -> tuple[Any, ...]:
        import nncf.openvino.engine
        import nncf.telemetry.decorator
        from nncf.common.logging.track_progress import track
        from nncf.common.tensor_statistics.collectors import OfflineAggregatorBase
        from nncf.quantization.algorithms.post_training import pipeline

        own = (
            nncf.openvino.engine.OVNativeEngine,
            nncf.telemetry.decorator.telemetry,
            track.__init__,
            track.__iter__,
            OfflineAggregatorBase.register_reduced_input,
            pipeline.BiasCorrection,
        )
        return (*own, track.update, list(logging.getLogger("nncf").handlers), list(sys.meta_path))

    source, ctx = pictures
    converted(PASS, source, tmp_path / "first", ctx)
    before = state()
    converted(PASS, source, tmp_path / "second", ctx)
    refused(pictures, tmp_path, ignored={"names": ["conv2"]})
    assert state() == before


@pytest.mark.parametrize(
    ("doctor", "what"), [("none", ["no FakeQuantize", "no int8 weights"]), ("weights", ["no FakeQuantize"])]
)
def test_confirm_sees_a_doctored_file(
    pictures: tuple[Artifact, Context], tmp_path: Path, doctor: str, what: list[str]
) -> None:
    source, ctx = pictures
    made = source
    if doctor == "weights":
        made, _ = converted(PASS, source, tmp_path / "out", ctx)
        made.path.write_text(made.path.read_text().replace('type="FakeQuantize"', 'type="Clamp"'))
    assert PASS.confirm is not None
    complaints = PASS.confirm(source, made, PASS.options(), ctx)
    assert [any(word in complaint for complaint in complaints) for word in what] == [True] * len(what)
    assert len(complaints) == len(what)


def test_dims_of_the_context_are_not_needed(tmp_path: Path) -> None:
    source = written(cnn(), tmp_path / "in", IMAGE, dims={"batch": Dim(1, 1, 1)})
    made, _ = converted(PASS, source, tmp_path / "out", context(tmp_path, IMAGE, outputs=("logits",), data=images(3)))
    assert made.signature == source.signature
