"""optkit from a training script: live models and data, reports, artifacts opened, compared and proven again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_zoo
import toy_kit
from torch import nn

import optkit
from optkit.cache import Cache
from optkit.capture import Captured, _copied, capture
from optkit.errors import CheckError, RecipeError, SourceError, StepError, UserError
from optkit.events import RunFinished, RunStarted, StepFinished
from optkit.opened import ranges_of
from optkit.recipe import load_recipe
from optkit.worker import replay

IMAGE = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SAMPLES = np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32)
DIMS = {"batch": (1, 4, 8)}


class Net(nn.Module):
    """Dropout and batch norm, so that the mode matters; a dict out; inputs by keyword alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)

    def forward(self, *, image: torch.Tensor, scale: torch.Tensor | None = None) -> dict[str, Any]:
        hidden = torch.relu(self.norm(self.conv(image))).mean((2, 3))
        logits = self.head(self.drop(hidden))
        return {"logits": logits if scale is None else logits * scale, "hidden": hidden, "cache": None}


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.linear(x), x + y


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 4:
            return x * 2
        return x


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x)


class Nested(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"a": x, "states": (x, x * 2)}


class Loader:
    """What optkit knows a DataLoader by: it can be iterated over, again and again, and gives batches."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, 10, self.size):
            rows = torch.from_numpy(SAMPLES[start : min(10, start + self.size)])
            yield {"image": rows, "label": torch.arange(start, start + len(rows)) % 3}


def net() -> Net:
    torch.manual_seed(3)
    return Net()


def module_at(folder: Path, captured: Captured) -> Any:
    """The captured program, as a torch model of optkit's."""
    from optkit.formats import torch_model

    (kind, path), *_ = captured.section.items()
    descriptor = {
        "kind": {"pt2": "exported"}.get(kind, kind),
        "path": path,
        "inputs": [{"name": name, **spec} for name, spec in captured.inputs.items()],
        "outputs": list(captured.outputs) or None,
    }
    (folder / "torch.json").write_text(json.dumps(descriptor))
    return torch_model.load(folder / "torch.json")


# ------------------------------------------------------------------------------------------------ live torch models


def test_a_module_in_the_middle_of_its_training(tmp_path: Path) -> None:
    model = net().train()
    model.norm.eval()
    model.conv.weight.requires_grad_(False)
    model(image=IMAGE)["logits"].sum().backward()
    gradient = model.head.weight.grad
    captured = capture(model, Cache(tmp_path), example_inputs={"image": IMAGE}, dims=ranges_of(DIMS))
    assert (model.training, model.drop.training, model.norm.training) == (True, True, False)
    assert (model.head.weight.requires_grad, model.conv.weight.requires_grad) == (True, False)
    assert model.head.weight.grad is gradient
    assert captured.inputs == {"image": {"dtype": "float32", "shape": ["batch", 3, 8, 8]}}
    assert captured.outputs == ("logits", "hidden")
    with torch.no_grad():
        wanted = model.eval()(image=IMAGE)["logits"]
    got = module_at(tmp_path, captured).call({"image": IMAGE})
    assert list(got) == ["logits", "hidden"]
    torch.testing.assert_close(got["logits"], wanted)
    again = capture(model, Cache(tmp_path), example_inputs={"image": IMAGE}, dims=ranges_of(DIMS))
    assert again == captured  # an unchanged model lies where it lay


@pytest.mark.parametrize("example", [(IMAGE[:, 0, :, :4], IMAGE[:, 0, :, 4:]), "named", "numpy", "specs"])
def test_inputs_in_every_form(tmp_path: Path, example: Any) -> None:
    x, y = np.ones((3, 4), np.float32), np.zeros((3, 4), np.float32)
    inputs = None
    if example == "specs":
        example, inputs = None, {"x": {"shape": ["batch", 4]}, "y": {"shape": ["batch", 4], "range": [0, 1]}}
    elif example == "named":
        example, inputs = {"y": torch.from_numpy(y), "x": torch.from_numpy(x)}, {"y": {"range": [0, 1]}}
    else:
        example = (x, y) if example == "numpy" else [torch.from_numpy(x), torch.from_numpy(y)]
    captured = capture(
        Pair(), Cache(tmp_path), example_inputs=example, inputs=inputs, outputs=["a", "b"], dims=ranges_of(DIMS)
    )
    assert set(captured.inputs) == {"x", "y"}
    assert captured.inputs["x"] == {"dtype": "float32", "shape": ["batch", 4]}
    assert captured.inputs["y"].get("range") == ([0, 1] if inputs else None)
    assert captured.outputs == ("a", "b")


def test_wrapped_modules(tmp_path: Path) -> None:
    plain = Pair()
    for wrapped in (torch.compile(plain, backend="eager"), nn.DataParallel(plain)):
        captured = capture(wrapped, Cache(tmp_path), example_inputs=(IMAGE[:, 0, 0, :4], IMAGE[:, 0, 1, :4]))
        assert captured.inputs["x"]["shape"] == [3, 4]
    stack = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
    captured = capture(stack, Cache(tmp_path), example_inputs={"features": IMAGE[:, 0, 0, :4]}, dims=ranges_of(DIMS))
    assert captured.inputs == {"features": {"dtype": "float32", "shape": ["batch", 4]}}


def test_a_copy_for_the_cpu_shares_nothing_it_need_not(tmp_path: Path) -> None:
    model = net().train()
    model.tied = model.head  # type: ignore[assignment]
    model.conv.weight.requires_grad_(False)
    copied = _copied(model, [*model.parameters(), *model.buffers()])
    assert copied is not model
    assert copied.tied is copied.head
    assert not copied.conv.weight.requires_grad
    assert isinstance(copied.head.weight, nn.Parameter)
    copied.eval()
    assert model.training
    torch.testing.assert_close(copied.state_dict(), model.state_dict())


def test_programs_and_scripts(tmp_path: Path) -> None:
    model = Pair().eval()
    pair = (torch.ones(3, 4), torch.zeros(3, 4))
    batch = torch.export.Dim("batch", min=1, max=8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        program = torch.export.export(model, pair, dynamic_shapes=({0: batch}, {0: batch}))
        script = torch.jit.script(model).train()
    captured = capture(program, Cache(tmp_path))
    assert (list(captured.section), captured.inputs) == (["pt2"], {})
    captured = capture(program, Cache(tmp_path), example_inputs=pair, dims=ranges_of(DIMS))
    assert list(captured.inputs) == ["x", "y"]
    captured = capture(script, Cache(tmp_path), example_inputs=pair, dims=ranges_of(DIMS))
    assert (list(captured.section), list(captured.inputs)) == (["torchscript"], ["x", "y"])
    assert script.training


@pytest.mark.parametrize(
    ("model", "given", "kind", "what", "hint"),
    [
        (Pair, {}, UserError, "nothing says what goes into the model", "example_inputs={"),
        (Pair, {"example_inputs": (1, 2, 3)}, UserError, "3 example inputs were given, and forward", "by name"),
        (Pair, {"example_inputs": {"x": "text", "y": 1}}, UserError, "'x' is a str, not a tensor", "defaults"),
        (Pair, {"example_inputs": {"x": IMAGE, "y": True}}, UserError, "'y' is a bool, not a tensor", "defaults"),
        (Pair, {"example_inputs": {"x": IMAGE, "z": IMAGE}}, SourceError, "has no input 'z'; it takes x, y", "one of"),
        (Pair, {"example_inputs": {"x": IMAGE}}, SourceError, "needs 'y', which no input feeds", "y: {shape"),
        (Pair, {"inputs": {"x": {"dtype": "int64"}}}, UserError, "'x' has no shape", "'shape': ['batch'"),
        (Pair, {"example_inputs": {"x": IMAGE}, "inputs": {"X": {}}}, UserError, "no example input 'X'", "one of: x"),
        (Branch, {"example_inputs": IMAGE, "dims": {"n": 2}}, UserError, "no input has a dim called 'n'", '"batch"'),
        (Branch, {"inputs": {"x": {"shape": ["n", 3]}}}, SourceError, "dim 'n' has no range", "n: {min: 1"),
        (Branch, {"example_inputs": IMAGE, "dims": DIMS}, StepError, r"`if x\.shape\[0\] > 4:`", "torch.where"),
        (Noisy, {"example_inputs": IMAGE}, SourceError, r"draws random numbers \(.*dropout", "self.training"),
        (Nested, {"example_inputs": IMAGE}, SourceError, "'states' of the model is a tuple with tensors in", "keep: a"),
        (lambda: 3, {}, UserError, "a builtins.int is no model optkit knows", "onnx.ModelProto"),
    ],
)  # fmt: skip
def test_a_live_model_that_cannot_be_captured(
    tmp_path: Path, model: Any, given: dict[str, Any], kind: type[Exception], what: str, hint: str
) -> None:
    given = {**given, "dims": ranges_of(given.get("dims"))}
    with pytest.raises(kind, match=what) as caught:
        capture(model(), Cache(tmp_path), **given)
    assert hint in caught.value.hint  # type: ignore[attr-defined]
    assert not list((tmp_path / "entries").rglob("model.pt2"))
    assert not list((tmp_path / "staging").glob("*/*"))


def test_a_captured_program_that_answers_otherwise_is_refused(tmp_path: Path) -> None:
    class Sly(nn.Module):
        """Traced, it is another function than called."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if torch.compiler.is_exporting() else x * 3

    with pytest.raises(
        CheckError, match=r"does not answer as the live module does at the example inputs: rel_l2 0\.33"
    ):
        capture(Sly(), Cache(tmp_path), example_inputs=IMAGE)


# ------------------------------------------------------------------------------------------------ a whole run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, optkit.Report, list[Any]]:
    """A module converted with data from a loader and an int8 step fitted on samples; its folder, and what was heard."""
    base = tmp_path_factory.mktemp("run")
    model, heard = net().train(), []
    report = optkit.convert(
        model, to=["onnx", "openvino"], example_inputs={"image": IMAGE}, dims=DIMS, data=Loader(4),
        steps=[{"id": "int8", "from": "onnx", "use": "onnx.quantize", "data": "fit", "check": ["cosine >= 0.9"]}],
        fit=[{"image": torch.from_numpy(sample)} for sample in SAMPLES[10:]], out=base / "out", cache=base / "cache",
        jobs=2, listen=heard.append,
    )  # fmt: skip
    assert model.training
    return base, model.eval(), report, heard


def test_the_report_of_a_live_conversion(run: tuple[Path, Any, optkit.Report, list[Any]]) -> None:
    base, _, report, heard = run
    assert report.ok
    assert {step["id"]: step["status"] for step in report.steps} == {
        "onnx": "passed", "openvino": "passed", "int8": "passed",
    }  # fmt: skip
    assert [report.path(step) for step in ("onnx", "openvino", "int8")] == [
        base / "out" / name for name in ("onnx", "openvino", "int8")
    ]
    assert (base / "out/report.md").read_text().startswith("#")
    assert json.loads((base / "out/report.json").read_text()) == report.data
    assert report.data["data"]["judge"]["samples"] == 10
    assert not report.data["data"]["judge"]["synthetic"]
    case = next(c for c in report.step("int8")["check"]["cases"] if c["kind"] == "samples")
    assert "labels (4,) fit 2 outputs" in str(case["source"]["notes"])  # the loader's
    assert isinstance(heard[0], RunStarted)
    assert isinstance(heard[-1], RunFinished)
    assert {e.step for e in heard if isinstance(e, StepFinished)} == {"onnx", "openvino", "int8"}


def test_a_second_run_from_a_thread_does_nothing(run: tuple[Path, Any, optkit.Report, list[Any]]) -> None:
    base = run[0]
    reports: list[optkit.Report] = []

    def work() -> None:
        reports.append(
            optkit.convert(net(), to="onnx", example_inputs={"image": IMAGE}, dims=DIMS, data=Loader(10),
                           out=base / "again", cache=Cache(base / "cache"), jobs=1)
        )  # fmt: skip

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert reports[0].step("onnx")["cached"] == {"run": True, "check": True}


def test_a_script_without_a_file_of_its_own(tmp_path: Path) -> None:
    code = (
        "import onnx, optkit\n"
        "x, y = (onnx.helper.make_tensor_value_info(n, 1, ['batch', 3]) for n in 'xy')\n"
        "graph = onnx.helper.make_graph([onnx.helper.make_node('Exp', ['x'], ['y'])], 'g', [x], [y])\n"
        "model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 20)], ir_version=10)\n"
        "report = optkit.convert(model, to='openvino', out='out', cache='cache', jobs=1)\n"
        "print(report.ok, '__file__' in globals())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("True False\n", "")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["data"]["judge"]["synthetic"]


def test_a_step_of_a_live_model_can_be_repeated(
    run: tuple[Path, Any, optkit.Report, list[Any]], tmp_path: Path
) -> None:
    base = run[0]
    result = replay(base / "out/logs/check-int8/step.json", tmp_path / "again")
    assert result["ok"], result
    assert (tmp_path / "again/vectors.npz").is_file()
    (kept,) = {json.loads(p.read_text())["artifact"]["path"] for p in (base / "out/logs/run-onnx").glob("step.json")}
    assert Path(kept).is_relative_to(base / "cache")


@pytest.mark.parametrize("step", ["onnx", "openvino", "int8"])
def test_a_delivery_is_opened_and_called(
    run: tuple[Path, Any, optkit.Report, list[Any]], tmp_path: Path, step: str
) -> None:
    _, model, report, _ = run
    folder = shutil.copytree(report.path(step), tmp_path / "deployed")
    with torch.no_grad():
        wanted = model(image=IMAGE)["logits"].numpy()
    with optkit.open_artifact(folder, threads=1) as opened:
        assert [str(t) for t in opened.signature.inputs] == ["image: float32[batch, 3, 8, 8]"]
        assert [t.name for t in opened.signature.outputs] == ["logits", "hidden"]
        assert "CPU" in opened.provider
        by_dict, by_name = opened({"image": IMAGE.numpy()}), opened(image=IMAGE)
        for _ in range(3):
            assert np.array_equal(opened(image=IMAGE)["logits"], by_name["logits"])
        assert np.array_equal(by_dict["logits"], by_name["logits"])
        np.testing.assert_allclose(by_name["logits"], wanted, atol=0.2 if step == "int8" else 1e-5)
        for wrong, what in (
            ({"imgae": IMAGE}, "no input 'imgae'"),
            ({}, "image"),
            ({"image": IMAGE.double()}, "float64"),
            ({"image": IMAGE[0]}, "axes"),
            ({"image": IMAGE.permute(0, 2, 3, 1)}, "NHWC|channels last|shape"),
        ):
            with pytest.raises(UserError, match=what):
                opened(wrong)
        assert opened(image=IMAGE)["logits"].shape == (3, 3)  # a mistake leaves it usable
    opened.close()
    with pytest.raises(UserError, match="the model is closed"):
        opened(image=IMAGE)


def test_threads_are_the_callers(run: tuple[Path, Any, optkit.Report, list[Any]]) -> None:
    path = run[2].path("onnx")
    with optkit.open_artifact(path / "model.onnx", threads=1) as opened:
        session: Any = opened._session
        assert session._session.get_session_options().intra_op_num_threads == 1
    before = torch.get_num_threads()
    with pytest.raises(UserError, match="threads is 0"):
        optkit.open_artifact(path, threads=0)
    assert torch.get_num_threads() == before


def test_a_verified_delivery_that_was_moved_and_tampered_with(
    run: tuple[Path, Any, optkit.Report, list[Any]], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(run[2].path("int8"), tmp_path / "moved"))
    told = optkit.verify(folder)
    assert told["held"]
    assert [case["name"] for case in told["cases"]] == [
        "against its own recorded answers", "against the source model's answers",
    ]  # fmt: skip
    model = folder / "model.onnx"
    model.write_bytes(model.read_bytes() + b"\0")
    told = optkit.verify(folder)
    assert not told["held"]
    assert told["problems"] == ["model.onnx is not the file that was delivered: its sha256 differs"]
    assert told["cases"] == []


def test_a_torch_model_is_compared_with_what_became_of_it(
    run: tuple[Path, Any, optkit.Report, list[Any]], tmp_path: Path
) -> None:
    report = run[2]
    shutil.copy(Path(__file__), tmp_path / "models.py")
    inputs = {"image": {"shape": ["n", 3, 8, 8]}}
    told = optkit.compare(
        f"{tmp_path / 'models.py'}:net", report.path("openvino"), inputs=inputs, dims={"n": (1, 2, 3)}, data=Loader(5)
    )
    assert told["held"], told
    assert (told["synthetic"], told["dims"]) == (False, {"n": {"min": 1, "opt": 2, "max": 3}})
    told = optkit.compare(report.path("onnx"), report.path("openvino") / "model.xml")
    assert told["held"]
    assert told["synthetic"]
    assert told["dims"] == {"batch": {"min": 1, "opt": 4, "max": 8}}  # the delivery's own
    told = optkit.compare(f"{tmp_path / 'models.py'}:net", report.path("onnx"))
    assert told["held"]
    assert told["dims"] == {"batch": {"min": 1, "opt": 4, "max": 8}}, "the delivery beside it says what goes in"
    with pytest.raises(UserError, match="does not say what goes into it") as caught:
        optkit.compare(f"{tmp_path / 'models.py'}:net", f"{tmp_path / 'models.py'}:net")
    assert "inputs={" in caught.value.hint
    with pytest.raises(UserError, match="does not say what goes into it"):
        optkit.open_artifact(f"{tmp_path / 'models.py'}:net")
    told = optkit.compare(f"{tmp_path / 'models.py'}:net", report.path("onnx"), inputs=inputs, data=Loader(5))
    assert told["held"]
    assert told["dims"] == {"n": {"min": 1, "opt": 4, "max": 8}}  # nobody said otherwise, but for the delivery
    with optkit.open_artifact(f"{tmp_path / 'models.py'}:net", inputs=inputs) as opened:
        assert set(opened(image=IMAGE)) == {"logits", "hidden"}


def test_live_models_of_other_libraries(run: tuple[Path, Any, optkit.Report, list[Any]], tmp_path: Path) -> None:
    import onnx
    import openvino

    report = run[2]
    model = onnx.load(report.path("onnx") / "model.onnx")
    before = model.SerializeToString()
    given: dict[str, Any] = {"cache": tmp_path / "cache", "jobs": 1, "data": {"image": SAMPLES[:6]}}
    made = optkit.convert(model, to=["openvino"], dims=DIMS, out=tmp_path / "a", **given)
    assert made.data["source"]["dims"] == {"batch": {"min": 1, "opt": 4, "max": 8}}
    assert model.SerializeToString() == before
    ir = openvino.Core().read_model(made.path("openvino") / "model.xml")
    half = {"id": "half", "use": "openvino.fp16"}
    made = optkit.convert(ir, steps=[half], name="half", out=tmp_path / "b", **given)
    assert made.step("half")["status"] == "passed"
    for live in (model, ir):
        with pytest.raises(UserError, match="knows what goes into it"):
            optkit.convert(live, to="openvino", example_inputs=IMAGE, **given)
    apart = onnx.load(report.path("onnx") / "model.onnx")
    onnx.external_data_helper.convert_model_to_external_data(apart, location="w.data", size_threshold=0)
    for tensor in apart.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(SourceError, match=r"keeps weights in 'w\.data' and does not say in which folder"):
        optkit.convert(apart, to="openvino", **given)


def test_a_large_onnx_model_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    from optkit.formats import onnx_model

    monkeypatch.setattr(onnx_model, "EXTERNAL_FROM", 4096)
    weight = onnx.numpy_helper.from_array(np.ones((3, 2000), np.float32), "w")
    x, y = (onnx.helper.make_tensor_value_info(n, 1, ["batch", size]) for n, size in (("x", 3), ("y", 2000)))
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    before = model.SerializeToString()
    captured = capture(model, Cache(tmp_path))
    assert model.SerializeToString() == before
    path = Path(captured.section["onnx"])
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    with optkit.open_artifact(path) as opened:
        assert (opened(x=np.ones((2, 3), np.float32))["y"] == 3).all()


# ------------------------------------------------------------------------------------------------ the toy format


@pytest.fixture
def toy(toy_plugin: Path, tmp_path: Path) -> Path:
    return toy_kit.folder(tmp_path / "toy")


STEPS: list[dict[str, Any]] = [
    {"id": "r", "use": "toy.round", "data": "fit", "check": ["cosine >= 0.99"]},
    {"id": "w", "use": "toy.copy", "waive": "there is nothing to compare"},
]


def convert(folder: Path, **given: Any) -> optkit.Report:
    rest = {"out": folder / "out", "cache": folder / "cache", "jobs": 1, **given}
    return optkit.convert(folder / "m.toy", data=folder / "judge.npz", **rest)


def test_steps_and_targets_are_delivered(toy: Path) -> None:
    steps = [*STEPS, {"id": "deep", "from": "w", "use": "toy.copy", "waive": "there is nothing to compare"}]
    report = convert(toy, to="toybin", steps=steps, fit=toy / "fit.npz", dims={"batch": (1, 3, 9)})
    assert sorted(d["step"] for d in report.data["deliver"]) == ["deep", "r", "toybin"]
    assert report.data["source"]["dims"] == {"batch": {"min": 1, "opt": 3, "max": 9}}
    with pytest.raises(KeyError):
        report.path("w")


def test_a_failure_is_raised_with_its_report(toy: Path) -> None:
    steps = [{"id": "r", "use": "toy.round", "with": {"digits": 0}, "data": "fit", "check": ["cosine >= 0.9999999"]},
             {"id": "next", "from": "r", "to": "toybin"}]  # fmt: skip
    with pytest.raises(CheckError, match=r"r: samples: y: cosine .* next: blocked by r") as caught:
        convert(toy, steps=steps, fit=toy / "fit.npz")
    assert [s["status"] for s in caught.value.report.steps] == ["failed", "blocked"]
    assert (toy / "out/report.md").is_file()
    report = convert(toy, steps=steps, fit=toy / "fit.npz", raise_on_failure=False)
    assert (report.ok, report.exit_code) == (False, 1)
    with pytest.raises(CheckError, match="c: the toy was asked to fail") as caught:
        convert(toy, steps=[{"id": "c", "use": "toy.copy", "with": {"fail": True}}])
    assert caught.value.report.exit_code == 3


def test_recipes_say_everything_themselves(toy: Path) -> None:
    path = toy_kit.recipe(toy, "  - {id: bin, to: toybin}\n")
    given: dict[str, Any] = {"out": toy / "out", "cache": toy / "cache", "jobs": 1}
    assert optkit.convert(path, **given).ok
    assert optkit.convert(load_recipe(path), **given).step("bin")["cached"]["run"]
    data = {**load_recipe(path).document.data, "model": {"file": str(toy / "m.toy")},
            "data": {"judge": {"npz": str(toy / "judge.npz")}}}  # fmt: skip
    report = optkit.convert(data, overrides=["dims.batch.max=5"], **given)
    assert report.data["source"]["dims"]["batch"]["max"] == 5
    assert optkit.plan(data, ["dims.batch.max=5"]).recipe.dims["batch"].max == 5
    assert optkit.plan(str(path), ["dims.batch.max=5"]).recipe.dims["batch"].max == 5
    with pytest.raises(UserError, match="to, data has no place beside a recipe"):
        optkit.convert(path, to="toybin", data={"x": SAMPLES})
    with pytest.raises(UserError, match="takes no overrides"):
        optkit.plan(load_recipe(path), ["dims.batch.max=5"])


@pytest.mark.parametrize(
    ("given", "kind", "what", "hint"),
    [
        ({}, UserError, "nothing says what to make of the model", "'toybin'"),
        ({"to": "toybim"}, RecipeError, "toybim", "toybin"),
        ({"to": "toybin", "dims": {"bach": (1, 2, 3)}}, SourceError, "no dynamic dim of this name", "'batch'"),
        ({"to": "toybin", "dims": {"batch": (3, 2, 1)}}, UserError, r"\(3, 2, 1\), which is no range", "(1, 8, 64)"),
        ({"to": "toybin", "dims": {"batch": "all"}}, UserError, "'all', which is no range", "(1, 8, 64)"),
        ({"to": "toybin", "dims": {"batch": {"mni": 1}}}, UserError, "which is no range", "(1, 8, 64)"),
        ({"to": "toybin", "inputs": {"z": {"shape": [2, 3]}}}, SourceError, "no input 'z'; it has x", "x"),
        ({"to": "toybin", "inputs": {"x": {"shape": [2, 4]}}}, SourceError, "fixed at 3, the recipe says 4", "3"),
        ({"to": "toybin", "inputs": {"x": {"shape": ["n", 3]}}}, RecipeError, "the dim 'n' has no range", "dims"),
        ({"to": "toybin", "outputs": ["z"]}, SourceError, "outputs are y, the recipe says z", "in its order"),
        ({"to": "toybin", "weights": "w.pt"}, UserError, "weights of its own", "leave"),
        ({"to": "toybin", "name": "a/b"}, RecipeError, "cannot be a folder's name", "letters"),
        ({"to": "toybin", "example_inputs": SAMPLES}, UserError, "go by name", "{"),
        ({"steps": [{"id": "r", "use": "toy.rond"}]}, RecipeError, "toy.rond", "toy.round"),
        ({"steps": [{"id": "r", "use": "toy.round", "data": "fit"}]}, RecipeError, "fit", "judge"),
        ({"steps": [{"use": "toy.copy"}]}, RecipeError, "id", ""),
    ],
)
def test_what_a_script_can_get_wrong(
    toy: Path, given: dict[str, Any], kind: type[Exception], what: str, hint: str
) -> None:
    with pytest.raises(kind, match=what) as caught:
        convert(toy, **given)
    assert hint in str(caught.value)
    assert not list((toy / "out").glob("*/optkit.json"))
    assert not (toy / "out/report.json").exists()


def test_a_model_that_is_not_there(toy: Path, tmp_path: Path) -> None:
    for call in (
        lambda: optkit.convert(toy / "m.tyo", to="toybin", cache=tmp_path),
        lambda: optkit.open_artifact(toy / "m.tyo"),
        lambda: optkit.compare(toy / "m.toy", toy / "m.tyo"),
    ):
        with pytest.raises(UserError, match=r"there is no .*m\.tyo") as caught:
            call()
        assert "'m.toy'" in caught.value.hint
    with pytest.raises(UserError, match=r"no kind optkit reads"):
        optkit.open_artifact(toy / "judge.npz")
    with pytest.raises(UserError, match="holds no model optkit knows"):
        optkit.open_artifact(toy)


def test_a_moved_checkout_runs_nothing_again(toy: Path, tmp_path: Path) -> None:
    recipe = toy_kit.recipe(toy, "  - {id: bin, to: toybin}\n")
    given: dict[str, Any] = {"cache": tmp_path / "cache", "jobs": 1}
    optkit.convert(recipe, out=toy / "out", **given)
    moved = Path(shutil.copytree(toy, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("out")))
    shutil.rmtree(toy)
    report = optkit.convert(moved / "recipe.yaml", out=moved / "out", **given)
    assert report.step("bin")["cached"] == {"run": True, "check": True}
    toy_kit.model(moved, weights=[[1, 0, 0], [0, 1, 0]])
    report = optkit.convert(moved / "recipe.yaml", out=moved / "out", **given)
    assert report.step("bin")["cached"] == {"run": False, "check": False}


def test_comparisons(toy: Path) -> None:
    data = {"x": np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)}

    def other(name: str, **changes: Any) -> Path:
        (folder := toy / name).mkdir()
        return toy_kit.model(folder, **changes)

    weights = np.array(json.loads((toy / "m.toy").read_text())["weights"])
    near = other("near", weights=(weights + 1e-3).tolist())
    same = optkit.compare(toy / "m.toy", other("same"), data=data)
    assert same["held"]
    assert [c["name"] for c in same["cases"]] == ["samples", "batch=1", "batch=2", "batch=4", "batch=3", "zeros"]
    assert not optkit.compare(toy / "m.toy", near, data=data)["held"]
    assert optkit.compare(toy / "m.toy", near, data=data, bounds=["cosine >= 0.999"])["held"]
    assert not optkit.compare(toy / "m.toy", near, data=data, bounds=["cosine >= 0.999", "max_abs <= 1e-9"])["held"]
    swapped = optkit.compare(toy / "m.toy", other("swapped", weights=weights[::-1].tolist()), data=data)
    assert not swapped["held"]
    named = other("named", output={"name": "z", "dtype": "float32", "shape": ["batch", 4]})
    told = optkit.compare(toy / "m.toy", named, data=data, bounds=["cosine >= 0.5"])
    assert not told["held"]
    assert "no output 'y'" in str(told["cases"][0]["source"]["problems"])
    short = optkit.compare(toy / "m.toy", other("short", weights=weights[:2].tolist()), data=data)
    assert not short["held"]
    fixed = other("fixed", input={"name": "x", "dtype": "float32", "shape": [2, 3]},
                  output={"name": "y", "dtype": "float32", "shape": [2, 4]})  # fmt: skip
    told = optkit.compare(toy / "m.toy", fixed, data=data)
    assert told["held"]
    assert told["notes"] == ["compared at batch=2 alone: one of the models is fixed there"]
    with pytest.raises(UserError, match="take different inputs: x and q"):
        optkit.compare(toy / "m.toy", other("q", input={"name": "q", "dtype": "float32", "shape": ["batch", 3]}))
    with pytest.raises(UserError, match="unknown metric 'cosin'"):
        optkit.compare(toy / "m.toy", near, bounds=["cosin >= 0.9"])
    with pytest.raises(UserError, match="expected shape"):
        optkit.compare(toy / "m.toy", near, data={"x": SAMPLES[:, 0, 0]})
    with pytest.raises(UserError, match="neither model has a dynamic dim 'bach'"):
        optkit.compare(toy / "m.toy", near, dims={"bach": (1, 2)})


def edited(folder: Path, **changes: Any) -> None:
    path = folder / "optkit.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_deliveries_that_are_not_what_they_were(toy: Path, tmp_path: Path) -> None:
    report = convert(toy, to="toybin", steps=STEPS, fit=toy / "fit.npz")
    assert optkit.verify(report.path("r"))["held"]
    told = optkit.verify(report.path("w"))
    assert not told["held"]  # nobody has checked it, here or there
    assert told["problems"] == [
        "it was delivered without test vectors, for its check was waived: there is nothing to compare"
    ]
    number = 0

    def damaged(edit: Any) -> Mapping[str, Any]:
        nonlocal number
        number += 1
        folder = Path(shutil.copytree(report.path("r"), tmp_path / str(number)))
        edit(folder)
        told: Mapping[str, Any] = optkit.verify(folder)
        assert not told["held"]
        return told

    record = "optkit.json is not the record that was delivered: its sha256 differs"
    assert damaged(lambda f: (f / "model.toy").write_text("{}"))["problems"][0].startswith("model.toy is not the file")
    assert damaged(lambda f: (f / "test-vectors.npz").unlink())["problems"] == ["test-vectors.npz is missing"]
    assert damaged(lambda f: (f / "test-vectors.npz").write_bytes(b""))["problems"][0].startswith("test-vectors.npz is")
    assert damaged(lambda f: edited(f, status="passed again"))["problems"] == [record]
    assert damaged(lambda f: edited(f, vectors=None))["problems"] == [record]
    assert damaged(lambda f: edited(f, format="toybin"))["problems"] == [record]
    for edit, what in (
        (lambda f: (f / "optkit.json").unlink(), r"has no optkit\.json"),
        (lambda f: (f / "optkit.json").write_text("{"), r"optkit\.json is damaged"),
        (lambda f: (f / "optkit.json").write_text('{"schema": 1}'), "is damaged: it lacks 'main'"),
        (lambda f: edited(f, schema=99), "has schema 99; this optkit reads 1"),
        (shutil.rmtree, "there is no folder"),
    ):
        with pytest.raises(UserError, match=what):
            damaged(edit)


def test_a_delivery_goes_on_with_what_its_record_knows(toy: Path) -> None:
    inputs = {"x": {"shape": ["batch", 3], "range": [-5, 5]}}
    first = convert(toy, to="toybin", inputs=inputs, dims={"batch": (2, 3, 5)})
    report = optkit.convert(
        first.path("toybin"), to="toypack", data=toy / "judge.npz", out=toy / "next", cache=toy / "cache", jobs=1
    )
    assert report.data["source"]["dims"] == {"batch": {"min": 2, "opt": 3, "max": 5}}
    assert report.data["source"]["signature"]["inputs"][0]["range"] == [-5, 5]
    told = optkit.compare(first.path("toybin"), report.path("toypack"))
    assert told["held"]
    assert told["dims"] == {"batch": {"min": 2, "opt": 3, "max": 5}}


def test_a_source_without_float64_is_judged_by_the_bound_for_unmeasured_noise(tmp_path: Path) -> None:
    inputs = {"x": {"shape": ["batch", 8]}}
    model, out = f"{torch_zoo.__file__}:SingleOnly", tmp_path / "out"
    report = optkit.convert(model, to="onnx", inputs=inputs, dims=DIMS, out=out, cache=tmp_path / "cache", jobs=1)
    assert report.ok
    assert report.data["source"]["noise"] is None
    verdicts = [v for case in report.step("onnx")["check"]["cases"] for v in case["verdicts"]]
    assert {v["bound"] for v in verdicts} == {"output.rel_l2 <= 0.0001"}
    assert all("not measured" in v["reason"] for v in verdicts)
