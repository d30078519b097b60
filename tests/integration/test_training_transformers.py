"""The Hugging Face Trainer's callback in real trainings: which weights it exports, and when it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_kit import JUDGE, OPTIONS, SCORES, WEIGHTS, Net, epoch_of
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from optkit.errors import CheckError, UserError
from optkit.integrations.transformers import OptkitCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*"),
    pytest.mark.filterwarnings("ignore:.*was constructed with a loaded function.*"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: the same weights are converted once."""
    return tmp_path_factory.mktemp("cache")


class Model(Net):
    """The model as a Trainer takes it: with labels, its loss comes first."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        scores = super().forward(x)
        return {"scores": scores} if labels is None else {"loss": nn.functional.cross_entropy(scores, labels),
                                                          "scores": scores}  # fmt: skip


class Script(TrainerCallback):
    """Ends each epoch with the weights of `WEIGHTS`."""

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        with torch.no_grad():
            model.linear.weight.copy_(WEIGHTS[round(state.epoch) - 1])


class Samples(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Any:
        return {"x": torch.tensor(JUDGE["x"][index]), "labels": torch.tensor(JUDGE["label"][index])}


def trained(
    tmp_path: Path, cache: Path, *, module: Any = None, script: bool = True, args: dict[str, Any] | None = None,
    resume: str | None = None, epochs: int = 4, watch: bool = True, **options: Any,
) -> Any:  # fmt: skip
    """The callback after a training, or with an error's `callback`."""
    options = {**OPTIONS, "out": tmp_path / "out", "cache": cache, "tell": lambda text: None} | options
    callback: Any = OptkitCallback(**options)
    said = {"eval_strategy": "epoch", "save_strategy": "epoch", "metric_for_best_model": "score", **(args or {})}
    arguments = TrainingArguments(
        str(tmp_path / "kept"), num_train_epochs=epochs, per_device_train_batch_size=32, report_to=[], use_cpu=True,
        disable_tqdm=True, logging_strategy="no", seed=3, **said,
    )  # fmt: skip
    given = module or Model()
    trainer: Any = Trainer(
        given, arguments, train_dataset=Samples(), eval_dataset=Samples(),
        callbacks=[*([Script()] if script else []), *([callback] if watch else [])],
        compute_metrics=lambda seen: {"score": SCORES[round(trainer.state.epoch) - 1]},
    )  # fmt: skip
    try:
        trainer.train(resume_from_checkpoint=resume)
    except Exception as error:
        error.callback = callback  # type: ignore[attr-defined]
        error.epoch = trainer.state.epoch  # type: ignore[attr-defined]
        raise
    return callback


def steps(callback: Any) -> list[tuple[int, bool]]:
    return [(export.step, export.held) for export in callback.exports]


def test_the_end_is_what_training_ends_with(tmp_path: Path, cache: Path) -> None:
    told: list[str] = []
    callback = trained(tmp_path, cache, tell=told.append)
    assert steps(callback) == [(8, True)]
    assert epoch_of(callback.report.path("onnx")) == 3
    assert told[-1].startswith("optkit: step 8: net: the delivery holds, in ")
    loaded = trained(tmp_path / "loaded", cache, args={"load_best_model_at_end": True})
    assert epoch_of(loaded.report.path("onnx")) == 2


def test_the_best_is_not_the_last(tmp_path: Path, cache: Path) -> None:
    callback = trained(tmp_path, cache, when="best", gate=["accuracy >= 99%"])
    assert steps(callback) == [(6, True)]
    assert callback.exports[0].checkpoint == str(tmp_path / "kept" / "checkpoint-6")
    assert callback.exports[0].epoch == 3
    assert epoch_of(callback.report.path("onnx")) == 2


def test_every_best_until_one_holds(tmp_path: Path, cache: Path) -> None:
    told: list[str] = []
    options: dict[str, Any] = {"when": "every best", "gate": ["accuracy >= 99%"]}
    callback = trained(tmp_path, cache, on_failure="keep training", tell=told.append, **options)
    assert steps(callback) == [(2, False), (6, True)]
    assert epoch_of(callback.report.path("onnx")) == 2
    assert told[-1] == "optkit: did not hold before, and was bettered since: step 2 (checkpoint-2)"
    with pytest.raises(CheckError, match=r"step 2 \(checkpoint-2\): onnx: gate accuracy >= 99%") as caught:
        trained(tmp_path / "now", cache, **options)
    assert caught.value.epoch == 1  # type: ignore[attr-defined]


def test_a_resumed_training_speaks_of_the_best_it_found_before(tmp_path: Path, cache: Path) -> None:
    trained(tmp_path, cache, when="every best", epochs=3)
    callback = trained(tmp_path, cache, when="every best", resume=str(tmp_path / "kept" / "checkpoint-6"))
    assert steps(callback) == [(6, True)]
    assert epoch_of(callback.report.path("onnx")) == 2


def test_training_goes_on_as_if_nothing_had_been(tmp_path: Path, cache: Path) -> None:
    """With dropout and shuffling, one draw more or a mode not put back would end with other weights."""

    def ends_with(name: str, **options: Any) -> Any:
        set_seed(7)
        module, learn = Model(), {"learning_rate": 0.1}
        made = trained(tmp_path / name, cache, script=False, epochs=2, module=module, args=learn, **options)
        return made, module

    callback, watched = ends_with("watched", when="every best")
    _, plain = ends_with("plain", watch=False)
    assert steps(callback) == [(2, True)], "in the middle of it"
    assert torch.equal(watched.linear.weight, plain.linear.weight)
    assert watched.training == plain.training


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"when": "best", "args": {"metric_for_best_model": None}}, "name no metric_for_best_model"),
        ({"when": "best", "args": {"save_strategy": "no"}}, "name no save_strategy"),
        ({"steps": [{"id": "a", "use": "onnx.quantise"}]}, "did you mean 'onnx.quantize'"),
        ({"model": "liner"}, "Model has no 'liner'\n  try: did you mean 'linear'"),
    ],
)
def test_what_cannot_be_is_said_before_training(
    tmp_path: Path, cache: Path, options: dict[str, Any], what: str
) -> None:
    with pytest.raises(UserError, match=what) as caught:
        trained(tmp_path, cache, **options)
    assert not caught.value.callback.exports  # type: ignore[attr-defined]
    assert not (tmp_path / "out").exists()


def test_a_best_that_was_not_saved_is_named(tmp_path: Path, cache: Path) -> None:
    args = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 4}
    with pytest.raises(UserError, match="step 6 was best, but not saved"):
        trained(tmp_path, cache, when="best", args=args)


def test_a_real_transformer_with_tied_weights(tmp_path: Path, cache: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16,
    )  # fmt: skip

    class Texts(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            ids = (torch.arange(8) * (index + 3)) % 32
            return {"input_ids": ids, "labels": ids}

    callback: Any = OptkitCallback(
        when="best", to="onnx", name="bert", out=tmp_path / "out", cache=cache, tell=lambda text: None, jobs=1,
        inputs={"input_ids": {"shape": ["batch", "sequence"], "dtype": "int64", "range": [0, 31]}},
        outputs=["logits"], dims={"batch": (1, 2, 4), "sequence": (2, 8, 16)},
    )  # fmt: skip
    arguments = TrainingArguments(
        str(tmp_path / "kept"), num_train_epochs=1, report_to=[], use_cpu=True, disable_tqdm=True,
        eval_strategy="epoch", save_strategy="epoch", logging_strategy="no", metric_for_best_model="loss",
    )  # fmt: skip
    model = BertForMaskedLM(config)
    Trainer(model, arguments, train_dataset=Texts(), eval_dataset=Texts(), callbacks=[callback]).train()
    assert steps(callback) == [(1, True)]
