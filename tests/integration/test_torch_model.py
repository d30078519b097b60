"""Torch models at rest: what can be loaded, what it is called with, and how each mistake reads."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_zoo as zoo
from torch import nn
from torch_kit import (
    DIMS,
    ENCODER,
    IDS,
    IMAGE,
    MASK,
    SERIES,
    ZOO,
    Bomb,
    X,
    Y,
    artifact,
    describe,
    descriptor,
    fails,
    scripted,
)

from optkit.artifact import Dim, TensorSpec
from optkit.errors import DataError, SourceError, StepError, UnavailableError
from optkit.formats.torch import model as torch_model
from optkit.formats.torch.feeds import choose_sizes
from optkit.runners.torch_runner import RUNNER


def export_fails(path: Path, subject: str, dims: Any = DIMS) -> Any:
    model = torch_model.load(path)
    with pytest.raises(StepError) as caught:
        torch_model.export(model, model.inputs, dims)
    assert caught.value.subject == subject
    assert caught.value.hint
    return caught.value


# ------------------------------------------------------------------------------------------------ signatures


def test_dict_output_and_dims_that_follow(tmp_path: Path) -> None:
    signature = describe(descriptor(tmp_path, ENCODER, "Encoder"))
    assert signature.inputs == ENCODER
    assert [str(spec) for spec in signature.outputs] == [
        "hidden: float32[batch, sequence, 16]",
        "pooled: float32[batch, 16]",
    ]


def test_tuple_output_and_an_axis_that_follows_no_dim(tmp_path: Path) -> None:
    signature = describe(descriptor(tmp_path, (X, Y), "Pair"))
    assert [str(spec) for spec in signature.outputs] == [
        "output_0: float32[batch, 8]",
        "output_1: float32[batch]",
        "output_2: float32[output_2_0]",
    ]


def test_outputs_are_renamed_in_order_or_chosen_by_key(tmp_path: Path) -> None:
    assert [s.name for s in describe(descriptor(tmp_path, (X, Y), "Pair", ["a", "b", "c"])).outputs] == ["a", "b", "c"]
    assert [s.name for s in describe(descriptor(tmp_path, ENCODER, "Encoder", ["pooled"])).outputs] == ["pooled"]
    error = fails(SourceError, descriptor(tmp_path, (X, Y), "Pair", ["a", "b"]), "outputs")
    assert "gives 3 outputs, but 2 are declared: a, b" in error.what
    error = fails(SourceError, descriptor(tmp_path, ENCODER, "Encoder", ["poled"]), "outputs")
    assert error.hint == "did you mean 'pooled'?"
    fails(SourceError, descriptor(tmp_path, ENCODER, "Encoder", ["cache"]), "outputs")  # there, but None


def test_a_sequential_left_in_training_mode_takes_any_input_name(tmp_path: Path) -> None:
    path = descriptor(tmp_path, (IMAGE,), "cnn")
    assert [str(spec) for spec in describe(path).outputs] == ["output: float32[batch, 2]"]
    model = torch_model.load(path)
    assert not any(part.training for part in model.module.modules())
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_the_order_of_inputs_is_the_recipes(tmp_path: Path) -> None:
    model = torch_model.load(descriptor(tmp_path, (Y, X), "Pair"))
    x, y = torch.randn(3, 8), torch.randn(3, 8)
    assert torch.equal(model.call({"x": x, "y": y})["output_1"], (x * 2).sum(-1))
    assert torch.equal(model.module(y, x)[1], (x * 2).sum(-1))


def test_inputs_must_be_forwards_parameters(tmp_path: Path) -> None:
    ids = TensorSpec("input_idz", "int64", ("batch", "sequence"))
    error = fails(SourceError, descriptor(tmp_path, (ids, MASK), "Encoder"), "inputs.input_idz")
    assert "it takes input_ids, attention_mask" in error.what
    assert error.hint == "did you mean 'input_ids'?"
    error = fails(SourceError, descriptor(tmp_path, (IDS,), "Encoder"), "inputs")
    assert "'attention_mask', which no input feeds" in error.what
    error = fails(SourceError, descriptor(tmp_path, (), "Encoder"), "inputs")
    assert "input_ids, attention_mask" in error.hint


def test_inputs_that_forward_cannot_take(tmp_path: Path) -> None:
    error = fails(
        SourceError, descriptor(tmp_path, (TensorSpec("image", "float32", ("batch", 4, 12, 10)),), "cnn"), "model"
    )
    assert "image float32[3, 4, 12, 10]: RuntimeError" in error.what
    other = {"batch": DIMS["batch"], "other": DIMS["batch"]}
    y = TensorSpec("y", "float32", ("other", 8))
    error = fails(SourceError, descriptor(tmp_path, (X, y), "Pair"), "model", other)
    assert f"{ZOO}:" in error.details
    assert "in forward: `return x + y" in error.details
    assert "need one name" in error.hint
    fails(SourceError, descriptor(tmp_path, (X, y), "Pair"), "dims.other", {"batch": DIMS["batch"]})
    fails(SourceError, descriptor(tmp_path, (TensorSpec("x", "int4", ("batch", 8)),), "Branch"), "inputs.x")


def test_sizes_are_small_distinct_and_in_range() -> None:
    dims = {"batch": Dim(1, 8, 64), "height": Dim(32, 64, 256), "width": Dim(32, 64, 256)}
    spec = TensorSpec("image", "float32", ("batch", 3, "height", "width"))
    first = choose_sizes([spec], dims)
    second = choose_sizes([spec], dims, unlike=first)
    assert first == {"batch": 5, "height": 32, "width": 64}
    assert all(first[name] != second[name] for name in dims)
    assert len(set(second.values())) == 3
    assert choose_sizes([X], {"batch": Dim(1, 2, 2)}) == {"batch": 2}
    assert choose_sizes([X], {"batch": Dim(4, 4, 4)}) == {}


# ------------------------------------------------------------------------------------------------ factories


def test_factory_mistakes(tmp_path: Path) -> None:
    error = fails(SourceError, descriptor(tmp_path, (X,), factory=f"{tmp_path}/nothing.py:build"), "model.torch")
    assert "is not there" in error.what
    assert fails(SourceError, descriptor(tmp_path, (X,), "Branhc"), "model.torch").hint == "did you mean 'Branch'?"
    error = fails(SourceError, descriptor(tmp_path, (X,), "broken"), "model.torch")
    assert "raised KeyError: 'no such layer'" in error.what
    assert f"{ZOO}:" in error.details
    assert 'in broken: `raise KeyError("no such layer")`' in error.details
    error = fails(SourceError, descriptor(tmp_path, (X,), "number"), "model.torch")
    assert "returned an int, not an nn.Module" in error.what
    error = fails(SourceError, descriptor(tmp_path, ENCODER, "Encoder", kwargs={"widht": 8}), "model.kwargs.widht")
    assert error.hint == "did you mean 'width'?"
    error = fails(SourceError, descriptor(tmp_path, (X,), factory="no_such_package.models:build"), "model.torch")
    assert "no Python module" in error.what
    fails(SourceError, descriptor(tmp_path, (X,), kind="factroy", factory="a:b"), "model")


def test_kwargs_reach_the_factory(tmp_path: Path) -> None:
    signature = describe(descriptor(tmp_path, ENCODER, "Encoder", kwargs={"width": 8}))
    assert signature.outputs[1].shape == ("batch", 8)


def test_a_factory_imports_its_siblings_and_no_others(tmp_path: Path) -> None:
    before = list(sys.path)
    for folder, gain in (("one", 2.0), ("two", 3.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "parts.py").write_text(f"GAIN = {gain}\n")
        (tmp_path / folder / "model.py").write_text(
            "import torch\nfrom parts import GAIN\n\n\nclass Model(torch.nn.Module):\n"
            "    def forward(self, x):\n        return x * GAIN\n"
        )
        path = descriptor(tmp_path, (X,), factory=f"{tmp_path / folder / 'model.py'}:Model")
        model = torch_model.load(path)
        assert torch.equal(model.call({"x": torch.ones(2, 8)})["output"], torch.full((2, 8), gain))
    assert sys.path == before


def test_an_importing_factory_file_that_fails_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("import no_such_package\n")
    error = fails(SourceError, descriptor(tmp_path, (X,), factory=f"{tmp_path}/model.py:build"), "model.torch")
    assert "ModuleNotFoundError: No module named 'no_such_package'" in error.what
    assert "model.py:1 in <module>" in error.details


def test_random_weights_are_the_same_at_every_load(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    path = descriptor(tmp_path, (IMAGE,), "cnn")
    feed = {"image": torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))}
    assert torch.equal(torch_model.load(path).call(feed)["output"], torch_model.load(path).call(feed)["output"])
    assert torch.equal(torch.get_rng_state(), state)


# ------------------------------------------------------------------------------------------------ files


def test_torchscript_is_called_by_its_schemas_names(tmp_path: Path) -> None:
    path = scripted(zoo.ScriptedDict(), tmp_path / "script.pt")
    signature = describe(descriptor(tmp_path, (Y, X), kind="torchscript", path=str(path)))
    assert [str(spec) for spec in signature.outputs] == ["a: float32[batch, 8]", "b: float32[batch, 8]"]
    error = fails(
        SourceError,
        descriptor(tmp_path, (X, TensorSpec("z", "float32", ("batch", 8))), kind="torchscript", path=str(path)),
        "inputs.z",
    )
    assert "it takes x, y" in error.what
    model = torch_model.load(descriptor(tmp_path, (Y, X), kind="torchscript", path=str(path)), "float64")
    assert model.call({"x": torch.ones(2, 8), "y": torch.ones(2, 8)})["a"].dtype == torch.float64


def program(tmp_path: Path, module: nn.Module, inputs: Any, dims: Any = DIMS) -> dict[str, Any]:
    return torch_model.save_live(module, tmp_path / "live.pt2", inputs, dims)


def test_an_exported_program_with_dynamic_dims(tmp_path: Path) -> None:
    made = program(tmp_path, zoo.Encoder(), ENCODER)
    path = tmp_path / "torch.json"
    path.write_text(json.dumps(made))
    assert [str(s) for s in describe(path).outputs] == [
        "hidden: float32[batch, sequence, 16]",
        "pooled: float32[batch, 16]",
    ]
    exported = torch_model.export(model := torch_model.load(path), model.inputs, DIMS)
    assert {str(limit) for limit in exported.range_constraints.values()} == {"VR[1, 64]", "VR[1, 40]"}
    path.write_text(json.dumps({**made, "inputs": []}))
    own = torch_model.describe(path, {})
    assert [str(s) for s in own.inputs] == [
        f"{name}: int64[input_ids_0, input_ids_1]" for name in ("input_ids", "attention_mask")
    ]
    assert own.outputs[1].shape == ("input_ids_0", 16)


def test_an_exported_program_that_cannot_do_what_is_declared(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(zoo.Branch().eval(), (torch.ones(3, 8),)), tmp_path / "static.pt2")
    error = fails(
        SourceError, descriptor(tmp_path, (X,), kind="exported", path=str(tmp_path / "static.pt2")), "inputs.x"
    )
    assert "axis 0 of input 'x' is declared as 'batch', but it is fixed at 3" in error.what
    made = program(tmp_path, zoo.Pair(), (X, Y))
    path = descriptor(tmp_path, (X, Y), kind="exported", path=made["path"])
    error = fails(SourceError, path, "dims.batch", {"batch": Dim(1, 8, 65)})
    assert "declared 1..65, but the program was exported for" in error.what
    narrow = [TensorSpec(spec.name, "float32", (4, 8)) for spec in (X, Y)]
    assert describe(descriptor(tmp_path, narrow, kind="exported", path=made["path"])).outputs[0].shape == (4, 8)
    double = TensorSpec("x", "float64", ("batch", 8))
    fails(SourceError, descriptor(tmp_path, (double, Y), kind="exported", path=made["path"]), "inputs.x")


def test_an_exported_program_runs_no_pickle(tmp_path: Path) -> None:
    made, mark, held = program(tmp_path, zoo.Pair(), (X, Y)), tmp_path / "mark", io.BytesIO()
    torch.save((Bomb(mark),), held)
    with zipfile.ZipFile(made["path"]) as old, zipfile.ZipFile(tmp_path / "bomb.pt2", "w") as new:
        for name in old.namelist():
            new.writestr(name, held.getvalue() if "sample_inputs" in name else old.read(name))
    error = fails(
        SourceError,
        descriptor(tmp_path, (X, Y), kind="exported", path=str(tmp_path / "bomb.pt2")),
        "model.trust_pickle",
    )
    assert "pathlib.Path" in error.what
    assert not mark.exists()


# ------------------------------------------------------------------------------------------------ behaviour


def test_a_model_whose_equal_calls_differ(tmp_path: Path) -> None:
    error = fails(SourceError, descriptor(tmp_path, (X,), "Noise"), "model")
    assert "output 'output' differs between two equal calls" in error.what
    assert "draws random numbers" in error.what
    assert "keeps state between calls" in fails(SourceError, descriptor(tmp_path, (X,), "Counter"), "model").what


def test_float64_reaches_casts_constants_and_factories(tmp_path: Path) -> None:
    path = descriptor(tmp_path, (X,), "Casts")
    feed = {"x": torch.randn(4, 8, generator=torch.Generator().manual_seed(1))}
    single, double = torch_model.load(path), torch_model.load(path, "float64")
    inner = single.source.module
    weight, bias, scale = (t.double() for t in (inner.linear.weight, inner.linear.bias, inner.scale))
    wanted = (feed["x"].double() @ weight.T + bias).exp() * scale
    got = double.call(feed)["output"]
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, wanted, rtol=1e-14, atol=1e-14)
    assert (single.call(feed)["output"].double() - wanted).abs().max() > 1e-9
    assert torch.get_default_dtype() == torch.float32
    with pytest.raises(UnavailableError, match="float8"):
        torch_model.load(path, "float8")


@pytest.mark.parametrize("sign", [1, -1])
def test_float64_reaches_the_branches_of_torch_cond(tmp_path: Path, sign: int) -> None:
    path = descriptor(tmp_path, (X,), "Chosen")
    model = torch_model.load(path, "float64")
    linear = model.source.module.linear
    feed = linear.weight.detach().sum(0).float().sign().expand(2, 8) * sign * 3.0
    wanted = linear(feed.double()).exp() / 10
    got = model.call({"x": feed})["output"]
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9)  # 0.1 was written in float32


def test_float64_of_an_exported_program(tmp_path: Path) -> None:
    made = program(tmp_path, zoo.Casts(), (X,))
    (tmp_path / "torch.json").write_text(json.dumps(made))
    feed = {"x": torch.randn(4, 8)}
    single = torch_model.load(tmp_path / "torch.json").call(feed)["output"]
    double = torch_model.load(tmp_path / "torch.json", "float64").call(feed)["output"]
    assert double.dtype == torch.float64
    assert 0 < (single.double() - double).abs().max() < 1e-4


# ------------------------------------------------------------------------------------------------ export


def line_of(text: str) -> int:
    return next(n for n, line in enumerate(ZOO.read_text().splitlines(), 1) if line.strip() == text)


def test_a_branch_on_a_size_is_refused_with_its_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    error = export_fails(descriptor(tmp_path, (X,), "Branch"), "dims.batch")
    assert "dim 'batch' (1..64) cannot vary as declared" in error.what
    assert "holds only where `batch <= 4`" in error.what
    assert f"{ZOO}:{line_of('if x.shape[0] > 4:')} in forward: `if x.shape[0] > 4:`" in error.what
    torch_model.export(model := torch_model.load(tmp_path / "torch.json"), model.inputs, {"batch": Dim(5, 8, 64)})
    assert capfd.readouterr() == ("", "")


def test_a_branch_on_size_one_is_refused_although_torch_exports_it(tmp_path: Path) -> None:
    path = descriptor(tmp_path, (X,), "One")
    error = export_fails(path, "dims.batch")
    assert "holds only where `batch != 1`" in error.what
    assert f"{ZOO}:{line_of('if x.shape[0] == 1:')} in forward" in error.what
    torch_model.export(model := torch_model.load(path), model.inputs, {"batch": Dim(2, 8, 64)})


def test_control_flow_on_values_is_refused_with_its_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    error = export_fails(descriptor(tmp_path, (X,), "Values"), "model")
    assert f"{ZOO}:{line_of('if x.sum() > 0:')} in forward: `if x.sum() > 0:`" in error.what
    assert "torch.where" in error.hint
    assert capfd.readouterr() == ("", "")


def test_a_size_that_must_divide(tmp_path: Path) -> None:
    dims = {"batch": Dim(5, 10, 60)}
    error = export_fails(descriptor(tmp_path, (X,), "Fixed"), "dims.batch", dims)
    assert "dim 'batch' (5..60)" in error.what
    assert "in forward: `return x.reshape(5" in error.what


def test_a_recurrent_layer_of_dynamic_length_points_to_the_way_out(tmp_path: Path) -> None:
    error = export_fails(descriptor(tmp_path, (SERIES,), "Recurrent"), "dims.sequence")
    assert "exporter: torchscript" in error.hint


def test_dims_of_one_size_are_static(tmp_path: Path) -> None:
    model = torch_model.load(descriptor(tmp_path, (X, Y), "Pair"))
    exported = torch_model.export(model, model.inputs, {"batch": Dim(4, 4, 4)})
    assert not exported.range_constraints
    assert torch_model.dynamic_shapes((X, Y), {"batch": Dim(1, 1, 1)}) == [{}, {}]
    shapes = torch_model.dynamic_shapes((X, Y), DIMS)
    assert shapes[0][0] is shapes[1][0]


def test_a_live_module_keeps_its_mode_and_gradients(tmp_path: Path) -> None:
    module = zoo.Encoder()
    made = program(tmp_path, module, ENCODER)
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert made["outputs"] == ["hidden", "pooled"]
    (tmp_path / "torch.json").write_text(json.dumps(made))
    ids, mask = torch.randint(0, 50, (3, 7)), torch.ones(3, 7, dtype=torch.int64)
    module.eval()
    got = torch_model.load(tmp_path / "torch.json").call({"input_ids": ids, "attention_mask": mask})
    torch.testing.assert_close(got["pooled"], module(ids, mask)["pooled"], rtol=1e-5, atol=1e-6)


def test_live_programs_and_scripts_are_saved_as_they_are(tmp_path: Path) -> None:
    exported = torch.export.export(zoo.Pair(), (torch.ones(2, 8),) * 2)
    assert torch_model.save_live(exported, tmp_path / "p.pt2", (), {})["kind"] == "exported"
    scripted(zoo.ScriptedDict(), tmp_path / "s.pt")
    with pytest.warns(DeprecationWarning, match="torch.jit.load"):
        loaded = torch.jit.load(str(tmp_path / "s.pt"))
    assert torch_model.save_live(loaded, tmp_path / "again.pt", (X, Y), DIMS)["kind"] == "torchscript"
    with pytest.raises(SourceError, match="not a torch model"):
        torch_model.save_live(3, tmp_path / "x.pt2", (), {})


# ------------------------------------------------------------------------------------------------ runner


def test_a_session_is_strict_and_leaves_its_inputs_alone(tmp_path: Path) -> None:
    source = artifact(descriptor(tmp_path, (IMAGE,), "cnn"))
    image = np.random.default_rng(0).standard_normal((2, 3, 12, 10)).astype(np.float32)
    kept, before = image.copy(), torch.get_num_threads()
    image.flags.writeable = False
    with RUNNER.open(source, threads=1) as session:
        assert torch.get_num_threads() == 1
        assert session.provider == "torch cpu float32"
        first = session.infer({"image": image})["output"]
        assert first.flags.c_contiguous
        assert first.flags.writeable
        for feeds, subject in (
            ({}, "inputs.image"),
            ({"image": image, "imagee": image}, "inputs.imagee"),
            ({"image": image.astype(np.float64)}, "inputs.image"),
            ({"image": image[0]}, "inputs.image"),
            ({"image": image[:, :2]}, "inputs.image"),
        ):
            with pytest.raises(DataError) as caught:
                session.infer(feeds)
            assert caught.value.subject == subject
    assert torch.get_num_threads() == before
    np.testing.assert_array_equal(image, kept)
    with RUNNER.open(source, precision="float64") as session:
        assert session.provider == "torch cpu float64"
        np.testing.assert_allclose(session.infer({"image": image})["output"], first, rtol=1e-5, atol=1e-6)


def test_devices_that_are_not_there(tmp_path: Path) -> None:
    source = artifact(descriptor(tmp_path, (X,), "Branch"))
    with pytest.raises(UnavailableError, match="knows no device"), RUNNER.open(source, "tpu"):
        pass
    if not torch.cuda.is_available():
        with pytest.raises(UnavailableError, match="'cuda'"), RUNNER.open(source, "cuda"):
            pass


def test_bfloat16_outputs_come_as_float32(tmp_path: Path) -> None:
    source = artifact(descriptor(tmp_path, (X,), "Half"))
    assert source.signature is not None
    assert source.signature.outputs[0].dtype == "bfloat16"
    with RUNNER.open(source) as session:
        got = session.infer({"x": np.full((2, 8), 1.00390625, np.float32)})["output"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.ones((2, 8), np.float32))


def test_inspect_of_a_descriptor(tmp_path: Path) -> None:
    about = RUNNER.inspect(descriptor(tmp_path, (IMAGE,), "cnn"))
    assert about["kind"] == "factory"
    assert about["modules"]["Conv2d"] == 1
    assert about["dtypes"] == {"float32": 8 * 27 + 8 + 4 * 8 + 18, "int64": 1}
