"""torch.prune beyond one ranking: down to a measured latency, and with recovery between rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import distill_kit as kit
import pytest
from distill_kit import Turn
from pydantic import ValidationError

from optkit.artifact import Artifact
from optkit.errors import StepError
from optkit.formats.torch import model as torch_model
from optkit.formats.torch_pruning.latency import search
from optkit.formats.torch_training.recovery import threads_of
from optkit.passes.torch_prune import PASS, TorchPrune
from optkit.speed.ratio import Ratio
from optkit.tasks.trials import Trials

# ------------------------------------------------------------------------------------------------ a measured latency


def timed(folder: Path, source: Artifact, runtime: str, **options: Any) -> Turn:
    turn = Turn(PASS, source, folder, {"runtime": runtime, **options}, data=None)
    turn.context = replace(turn.context, trial=Trials(PASS, source, runtime, turn.context))
    return turn


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Layers so wide that their products take nearly all of the time."""
    return kit.source(tmp_path_factory.mktemp("wide"), kwargs={"width": 1024})


def test_a_latency_is_reached_on_the_runtime_it_is_measured_on(wide: Artifact, tmp_path: Path) -> None:
    turn = timed(tmp_path, wide, "onnx", latency="80%", round_to=512, keep_at_least=0.5)
    notes = turn.run()
    found = notes["latency"]
    assert found["latency"] <= 0.8
    assert found["between"][0] <= found["latency"] <= found["between"][1]
    assert found["speedup"]["rounds"] >= 7
    assert 0.1 < found["macs_gone"] < 1
    assert len(found["tried"]) >= 2
    assert any(told.startswith("convert and race candidate 2") for told, _ in turn.told)
    again = Trials(PASS, wide, "onnx", replace(turn.context, scratch=tmp_path / "scratch" / "again"))
    again.context.scratch.mkdir()
    assert again(turn.out).value > 1  # what was written is what was measured


def test_a_latency_out_of_reach_says_how_far_it_came_and_what_stood_in_the_way(wide: Artifact, tmp_path: Path) -> None:
    what = r"comes down to [\d.]+% \(.*\) of the unpruned model's, not to 2\.0%"
    with pytest.raises(StepError, match=what) as caught:
        timed(tmp_path, wide, "torch", latency="2%", keep_at_least=0.75).run()
    assert "head: it is an output of the model; down to the least that has to stay: first, second" in caught.value.what
    assert "of the multiply-accumulates are gone then" in caught.value.what
    assert caught.value.hint


def at(value: float) -> Ratio:
    return Ratio(value, value * 0.98, value * 1.02, 20)


def found(latency: float, speed: Any, *, members: int = 40) -> Any:
    """A search over `members`, of which each takes an equal share of the operations."""

    def rounded(part: Sequence[int]) -> frozenset[int]:
        return frozenset(part)

    return search(range(members), latency, rounded, lambda removed: len(removed) / (members + 1),
                  lambda removed, seconds: at(speed(len(removed), seconds)), sure=True)  # fmt: skip


def test_the_search_takes_the_fewest_that_are_fast_enough() -> None:
    result = found(0.5, lambda count, seconds: 41 / (41 - count))
    assert len(result.met.removed) == 21  # the first with 20.5 of 41 gone
    assert len(result.tried) <= 9


def test_a_lucky_race_is_not_believed() -> None:
    """In short races everything looks a tenth faster than it is."""
    result = found(0.5, lambda count, seconds: 41 / (41 - count) * (1.1 if seconds < 3 else 1))
    assert result.met.ratio.value >= 2
    assert len(result.met.removed) >= 21


def test_a_search_without_success_knows_its_best() -> None:
    result = found(0.01, lambda count, seconds: 41 / (41 - count))
    assert result.met is None
    assert result.best.ratio.value == 41


# ------------------------------------------------------------------------------------------------ recovery

RECOVER = {"epochs": 3, "lr": 0.01, "checkpoint_seconds": 0,
           "losses": [{"kind": "mse"}, {"kind": "hidden", "layers": {"second": "second"}}]}  # fmt: skip
OPTIONS = {"remove_parameters": "75%", "rounds": 3, "recover": RECOVER}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return kit.source(tmp_path_factory.mktemp("teacher"))


def test_what_was_lost_is_learned_again_between_rounds(teacher: Artifact, tmp_path: Path) -> None:
    turn = Turn(PASS, teacher, tmp_path / "one", OPTIONS)
    notes = turn.run()
    assert [round_["after_round"] for round_ in notes["recovered"]] == [1, 2]
    for round_ in notes["recovered"]:
        assert round_["held_out_loss"]["after"] < round_["held_out_loss"]["before"]
    assert notes["reached"] >= 0.75
    assert any(text.startswith("recovery after round 2 of 3, epoch 3 of 3: loss") for text, _ in turn.told)
    assert all(fraction is None or 0 <= fraction <= 1 for _, fraction in turn.told)
    assert not any(m._forward_hooks for m in torch_model.load(turn.out / "torch.json").source.module.modules())
    again = Turn(PASS, teacher, tmp_path / "again", OPTIONS)
    again.run()
    assert again.weights == turn.weights


def test_stopped_in_a_recovery_it_goes_on_to_the_same_bits(teacher: Artifact, tmp_path: Path) -> None:
    whole = Turn(PASS, teacher, tmp_path / "whole", OPTIONS)
    whole.run()
    (tmp_path / "kept").mkdir()
    for number, (round_, epoch) in enumerate([(1, 2), (2, 1), (2, 3)]):
        turn = Turn(PASS, teacher, tmp_path / f"stopped-{number}", OPTIONS, kept=tmp_path / "kept")
        told: list[str] = []

        def tell(text: str, fraction: float | None, told: list[str] = told,
                 stop: str = f"recovery after round {round_} of 3, epoch {epoch}") -> None:  # fmt: skip
            told.append(text)
            if text.startswith(stop):
                raise KeyboardInterrupt

        turn.context = replace(turn.context, progress=tell)
        with pytest.raises(KeyboardInterrupt):
            turn.run()
        if number == 2:  # the first round's training is over and is not repeated
            assert not any(text.startswith("recovery after round 1") for text in told)
    rest = Turn(PASS, teacher, tmp_path / "rest", OPTIONS, kept=tmp_path / "kept")
    notes = rest.run()
    assert rest.weights == whole.weights
    assert [round_["steps"] for round_ in notes["recovered"]] == [18, 18]


def test_a_resumed_step_takes_the_threads_it_began_with(tmp_path: Path) -> None:
    assert threads_of(tmp_path, 2) == 2
    assert threads_of(tmp_path, 7) == 2


def test_a_recovery_that_fails_names_its_round_and_its_option(teacher: Artifact, tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"recovery after round 1 of 3: ") as caught:
        Turn(PASS, teacher, tmp_path, {**OPTIONS, "recover": {"epochs": 1, "lr": 1e30, "clip_norm": None}}).run()
    assert caught.value.subject == "with.recover.lr"


@pytest.mark.parametrize(("options", "what"), [
    ({"ratio": 0.5, "latency": 0.5, "runtime": "onnx"}, "name one target, not ratio and latency"),
    ({"latency": "60%"}, "name it, as in runtime: onnx"),
    ({"latency": "100%", "runtime": "onnx"}, "less than 1"),
    ({"ratio": 0.5, "runtime": "onnx"}, "runtime goes with latency"),
    ({"ratio": 0.5, "recover": {"epochs": 1}}, "between rounds"),
    ({"ratio": 0.5, "rounds": 2, "recover": {"student": {"torch": "a.py:b"}}}, "Extra inputs"),
    ({"how": "2:4", "recover": {"epochs": 1}}, "recover goes with how: structured"),
])  # fmt: skip
def test_options_that_make_no_sense(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        TorchPrune(**options)
