"""A live torch module captured for a conversion, and what cannot be captured."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from api_kit import DIMS, IMAGE, net
from torch import nn

from optkit.cache import Cache
from optkit.errors import CheckError, SourceError, StepError, UserError
from optkit.live.capture import Captured, _copied, capture
from optkit.models.opened import ranges_of


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


def module_at(folder: Path, captured: Captured) -> Any:
    """The captured program, as a torch model of optkit's."""
    from optkit.formats.torch import model as torch_model

    (kind, path), *_ = captured.section.items()
    descriptor = {
        "kind": {"pt2": "exported"}.get(kind, kind),
        "path": path,
        "inputs": [{"name": name, **spec} for name, spec in captured.inputs.items()],
        "outputs": list(captured.outputs) or None,
    }
    (folder / "torch.json").write_text(json.dumps(descriptor))
    return torch_model.load(folder / "torch.json")


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
