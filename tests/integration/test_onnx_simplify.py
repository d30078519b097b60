"""onnx.simplify: onnxsim in a child process."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_models import (
    FLOAT,
    cnn,
    context,
    edited,
    encoder,
    feed_of,
    images,
    infer,
    made,
    model,
    node,
    operators,
    saved,
    texts,
    value,
    weight,
)

from optkit.artifact import Artifact
from optkit.errors import StepCrashed, StepError, StepTimeout
from optkit.formats.onnx import model as onnx_model
from optkit.passes import onnx_simplify
from optkit.passes.onnx_simplify import PASS


def wordy() -> onnx.ModelProto:
    """A convolution with batch normalisation, computed constants, and steps that do nothing: `(batch, 4, 8, 8)`."""
    nodes = [
        node("Identity", "x", "same"), node("Add", "a b", "shift"), node("Conv", "same k", "c", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c scale bias mean var", "n"), node("Shape", "x", "s"),
        node("Gather", "s zero", "first"), node("Unsqueeze", "first axis", "size"),
        node("Concat", "size rest", "shape", axis=0), node("Reshape", "n shape", "r"), node("Add", "r shift", "y"),
    ]  # fmt: skip
    constants = {"a": weight(4, 1, 1), "b": weight(4, 1, 1, seed=1), "k": weight(4, 3, 3, 3), "scale": weight(4),
                 "bias": weight(4, seed=1), "mean": weight(4, seed=2), "var": np.abs(weight(4, seed=3)) + 1,
                 "zero": np.array(0), "axis": np.array([0]), "rest": np.array([4, 8, 8])}  # fmt: skip
    return model(nodes, [value("x", FLOAT, ["batch", 3, 8, 8])], [value("y", FLOAT, ["batch", 4, 8, 8])], constants)


def test_a_file_of_an_ir_that_wants_constants_as_inputs(tmp_path: Path) -> None:
    old = saved(wordy(), tmp_path / "old")
    proto = onnx.load(old.path)
    proto.ir_version = 3
    proto.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in proto.graph.initializer
    )
    source = saved(proto, tmp_path / "source")
    result, notes, complaints = made(PASS, source, tmp_path)
    assert complaints == []
    assert notes["nodes"]["after"] <= 4
    feed = {"x": weight(2, 3, 8, 8)}
    assert np.allclose(infer(result, feed)[0], infer(source, feed)[0], atol=1e-5)


def test_folds_and_fuses(tmp_path: Path) -> None:
    source = saved(wordy(), tmp_path / "source")
    result, notes, complaints = made(PASS, source, tmp_path)
    assert complaints == []
    assert notes["nodes"]["before"] == 10
    assert notes["nodes"]["after"] == sum(operators(result).values()) <= 4
    assert {"BatchNormalization", "Identity", "Shape"}.isdisjoint(operators(result))
    assert notes["operators"]["before"]["BatchNormalization"] == 1
    assert result.signature == source.signature
    for batch in (1, 3):
        feed = {"x": weight(batch, 3, 8, 8)}
        np.testing.assert_allclose(infer(result, feed)[0], infer(source, feed)[0], atol=1e-5)


def test_options_reach_onnxsim(tmp_path: Path) -> None:
    source = saved(wordy(), tmp_path / "source")
    kept, _, _ = made(PASS, source, tmp_path, skip_fuse_bn=True)
    assert operators(kept)["BatchNormalization"] == 1
    bare, _, _ = made(PASS, source, tmp_path, skip_optimizers=True, skip_constant_folding=True)
    assert operators(bare) == operators(source)
    shapeless, _, _ = made(PASS, source, tmp_path, skip_shape_inference=True)
    assert not onnx.load(shapeless.path).graph.value_info


def test_dims_stay_dynamic_in_an_encoder(tmp_path: Path) -> None:
    source = saved(encoder(), tmp_path / "source")
    result, _, complaints = made(PASS, source, tmp_path)
    assert complaints == []
    assert result.signature is not None
    assert result.signature.dynamic == ("batch", "length")
    for sample in texts(3):
        np.testing.assert_allclose(infer(result, feed_of(sample))[0], infer(source, feed_of(sample))[0], atol=1e-5)


def test_external_data_in_and_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(cnn(), tmp_path / "source", external=True)
    result, _, complaints = made(PASS, source, tmp_path)
    assert (result.files, complaints) == (("model.onnx",), [])
    monkeypatch.setattr(onnx_model, "EXTERNAL_FROM", 4096)
    large, _, complaints = made(PASS, source, tmp_path)
    assert (large.files, complaints) == (("model.onnx", "model.onnx.data"), [])
    feed = feed_of(images(1)[0])
    np.testing.assert_array_equal(infer(result, feed)[0], infer(large, feed)[0])


def test_large_constants_are_not_made(tmp_path: Path) -> None:
    nodes = [node("ConstantOfShape", "shape", "ones"), node("Add", "x ones", "y")]
    proto = model(
        nodes, [value("x", FLOAT, [1, 1])], [value("y", FLOAT, [1024, 1024])], {"shape": np.array([1024, 1024])}
    )
    source = saved(proto, tmp_path / "source")
    small, _, _ = made(PASS, source, tmp_path, largest_constant_mb=1)
    assert small.size_bytes < 10_000


def run(source: Artifact, folder: Path, **options: Any) -> None:
    (folder / "out").mkdir(exist_ok=True)
    PASS.run(source, folder / "out", PASS.options(**options), context(folder))


def test_a_time_limit_holds(tmp_path: Path) -> None:
    source = saved(cnn(), tmp_path / "source")
    with pytest.raises(StepTimeout, match=r"stopped after 0\.01 s") as caught:
        run(source, tmp_path, time_limit_seconds=0.01)
    assert caught.value.subject == "with.time_limit_seconds"
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("number", "what"), [(11, "segmentation fault"), (9, "lack of memory"), (15, "signal 15")])
def test_a_crash_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, what: str) -> None:
    """The child is real, and dies by the signal it sends itself."""
    source = saved(cnn(), tmp_path / "source")
    script = tmp_path / "child.py"
    script.write_text(
        f"import os, sys\nprint('last words', file=sys.stderr, flush=True)\nos.kill(os.getpid(), {number})\n"
    )
    monkeypatch.setattr(onnx_simplify.onnx_simplify_child, "__file__", str(script))
    with pytest.raises(StepCrashed, match=what) as caught:
        run(source, tmp_path)
    assert caught.value.details == "last words"


def test_a_failure_brings_onnxsims_words(tmp_path: Path) -> None:
    broken = cnn()
    broken.graph.node[0].input[0] = "nobody"
    with pytest.raises(StepError, match=r"onnxsim failed: .*nobody") as caught:
        run(saved(broken, tmp_path / "source"), tmp_path)
    assert "skip_constant_folding" in caught.value.hint


def test_the_child_imports_neither_torch_nor_optkit(tmp_path: Path) -> None:
    """Start-up is what simplifying a small model costs."""
    source = saved(cnn(), tmp_path / "source")
    shim = tmp_path / "python"
    shim.write_text(
        f"#!{sys.executable}\nimport runpy, sys\nsys.argv = sys.argv[2:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        f"names = {{n.partition('.')[0] for n, m in sys.modules.items() if m is not None}}\n"
        f"open({str(tmp_path / 'names')!r}, 'w').write(' '.join(sorted(names)))\n"
    )
    shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(shim))
        run(source, tmp_path)
    names = set((tmp_path / "names").read_text().split())
    assert {"onnxsim", "onnx"} <= names
    assert names.isdisjoint({"torch", "sympy", "optkit", "pydantic"})


def test_confirm_can_fail(tmp_path: Path) -> None:
    source = saved(cnn(), tmp_path / "source")
    assert PASS.confirm is not None

    def fix(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    def grow(proto: onnx.ModelProto) -> None:
        proto.graph.node.append(node("Relu", "logits", "more"))

    def spoil(proto: onnx.ModelProto) -> None:
        proto.graph.node[0].input[0] = "nobody"

    for change, what in ((fix, "axis 0 of image was dynamic and is 1"), (grow, "it has 9 nodes, its source has 8"),
                         (spoil, "it is not valid ONNX")):  # fmt: skip
        wrong = edited(source, tmp_path / change.__name__, change)
        assert what in "; ".join(PASS.confirm(source, wrong, PASS.options(), context(tmp_path)))
    assert list(PASS.confirm(source, source, PASS.options(), context(tmp_path))) == []
