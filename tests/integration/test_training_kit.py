"""What both training callbacks stand on: several processes, trackers, and a live model in a recipe's place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_kit import JUDGE, WEIGHTS, Net

import optkit
from optkit.api import planned
from optkit.cache import Cache
from optkit.errors import CheckError, RecipeError, SourceError, UserError
from optkit.integrations import tracking
from optkit.report import Report

RANK = """
import sys
import torch.distributed as dist
from optkit.errors import CheckError
from optkit.integrations import ranks

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
def work():
    print("worked", rank)
    return {"from": rank}
def fails():
    raise CheckError("it does not hold", hint="mend it")
print("got", ranks.on_first(work)["from"], ranks.is_first())
try:
    ranks.on_first(fails)
except CheckError as error:
    print("raised", error.what)
print("got", ranks.on_first(work)["from"])
"""


def test_one_process_works_and_all_hear_of_it(tmp_path: Path) -> None:
    both = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    first, second = (one.communicate(timeout=300)[0].splitlines() for one in both)
    assert [one.returncode for one in both] == [0, 0]
    assert first == ["worked 0", "got 0 True", "raised it does not hold", "worked 0", "got 0"]
    assert second == ["got 0 False", "raised it does not hold", "got 0"]


def test_importing_the_integrations_loads_nothing() -> None:
    code = """
import sys
import optkit.integrations.lightning, optkit.integrations.transformers, optkit.integrations.tracking
found = {"torch", "transformers", "pytorch_lightning", "lightning", "mlflow", "wandb", "tensorboard"} & set(sys.modules)
assert not found, found
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# ------------------------------------------------------------------------------------------------ trackers


def test_active_runs_are_found_without_importing_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert tracking.active() == []
    assert "mlflow" not in sys.modules
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=None))  # type: ignore[arg-type]
    assert tracking.active() == []
    with pytest.raises(UserError, match="no Weights & Biases run is active"):
        tracking.WandB()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=SimpleNamespace(id="r")))  # type: ignore[arg-type]
    (found,) = tracking.active()
    assert isinstance(found, tracking.WandB)


def test_a_tracker_that_fails_is_named_and_keeps_none_from_being_told(tmp_path: Path) -> None:
    class Fails:
        def log(self, figures: Any, step: int) -> None:
            raise ConnectionError("no route to host\nand more")

    class Hears:
        def log(self, figures: Any, step: int) -> None:
            self.step = step

        def keep(self, files: Any, step: int, text: str) -> None:
            self.text = text

    hears: Any = Hears()
    report = Report({"name": "net", "seconds": 1.0, "exit_code": 0, "steps": [], "deliver": []})
    wrong = tracking.put([Fails(), hears], report, tmp_path, 3, artifacts=True)  # type: ignore[list-item]
    assert wrong == ["Fails: ConnectionError: no route to host"]
    assert (hears.step, hears.text) == (3, "net: 0 of 0 deliveries hold")


# ------------------------------------------------------------------------------------------------ a live model's recipe

RECIPE: dict[str, Any] = {
    "version": 1, "name": "net", "inputs": {"x": {"shape": ["batch", 4]}}, "dims": {"batch": {"min": 1, "max": 8}},
    "data": {"judge": {"random": 8}}, "check_on": "judge", "steps": [{"id": "onnx", "to": "onnx"}], "deliver": ["onnx"],
}  # fmt: skip
FACTORY = f"{Path(__file__).with_name('training_kit.py')}:Net"


def live() -> Net:
    model = Net()
    with torch.no_grad():
        model.linear.weight.copy_(WEIGHTS[0])
    return model


def plan(cache: Path, model: Any, recipe: Any, **more: Any) -> Any:
    return planned(model, Cache(cache), (), {"recipe": recipe, **more})


def test_a_recipe_says_the_rest_of_a_live_model(tmp_path: Path) -> None:
    model = live()
    found = plan(tmp_path, model, RECIPE).recipe
    assert (type(found.model).__name__, found.outputs) == ("ExportedSource", ("output",))
    file = tmp_path / "recipe.yaml"
    import yaml

    file.write_text(yaml.safe_dump({**RECIPE, "model": {"pt2": "not-there.pt2"}, "outputs": ["y"]}))
    found = plan(tmp_path, model, file, example_inputs={"x": JUDGE["x"][:3]}).recipe
    assert (found.base, found.outputs, Path(found.model.pt2).is_file()) == (tmp_path, ("y",), True)
    assert model.training


def test_a_recipe_with_a_factory_keeps_it_with_the_live_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    document = {**RECIPE, "model": {"torch": FACTORY, "weights": "not-there.safetensors"}}
    found = plan(tmp_path, live(), document).recipe.model
    assert found.torch == FACTORY
    assert torch.equal(load_file(found.weights)["linear.weight"], WEIGHTS[0])


class Doubled(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_what_does_not_fit_a_recipe(tmp_path: Path) -> None:
    factory = {**RECIPE, "model": {"torch": FACTORY}}
    with pytest.raises(CheckError, match="what the recipe's factory builds does not answer as the live module does"):
        plan(tmp_path, Doubled(), factory)
    with pytest.raises(SourceError, match="the live module's weights do not fit the model"):
        plan(tmp_path, torch.nn.Linear(4, 3), factory)
    with pytest.raises(RecipeError, match="did you mean 'steps'"):
        plan(tmp_path, object(), {**RECIPE, "stesp": []})
    with pytest.raises(UserError, match="to, data has no place beside a recipe"):
        plan(tmp_path, live(), RECIPE, to="onnx", data={"random": 2})
    with pytest.raises(UserError, match="recipe= goes with a live model"):
        optkit.convert("model.onnx", recipe=RECIPE)


def test_samples_say_what_goes_into_a_live_model(tmp_path: Path) -> None:
    asked = {"to": "onnx", "dims": {"batch": (1, 4, 16)}, "data": JUDGE, "gate": ["size <= 1 MB"]}
    found = planned(live(), Cache(tmp_path), (), asked).recipe
    assert [(t.name, t.shape, t.dtype) for t in found.inputs] == [("x", ("batch", 4), "float32")]
    assert found.gate == ("size <= 1 MB",)
