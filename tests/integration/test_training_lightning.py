"""The Lightning callback in real trainings: which weights it exports, when it fails, and that it disturbs nothing."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from training_kit import JUDGE, OPTIONS, SCORES, WEIGHTS, Net, epoch_of

from optkit.errors import CheckError, SourceError, StepError, UserError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pytorch_lightning as pl

from optkit.integrations.lightning import OptkitCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*for debugging.*"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: the same weights are converted once."""
    return tmp_path_factory.mktemp("cache")


class Scripted(pl.LightningModule):
    """Ends each epoch with the weights of `WEIGHTS` and logs the score of `SCORES`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.automatic_optimization = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(x)
        return out

    def training_step(self, batch: Any, index: int) -> None:
        with torch.no_grad():
            self.net.linear.weight.copy_(WEIGHTS[self.current_epoch])
        self.optimizers().step()

    def validation_step(self, batch: Any, index: int) -> None:
        if not self.trainer.sanity_checking:
            self.log("score", SCORES[self.current_epoch])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0)


class Learning(pl.LightningModule):
    """Real training, with dropout: what draws from a generator in between changes the weights it ends with."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss: torch.Tensor = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        return loss + 0 * float(np.random.uniform() + random.random())

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("score", -float(self.current_epoch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loaders() -> Any:
    """One that shuffles, to train on, and one to validate on."""
    samples = TensorDataset(*map(torch.from_numpy, JUDGE.values()))
    return DataLoader(samples, 32, shuffle=True), DataLoader(samples, 64)


def trained(
    tmp_path: Path, cache: Path, module: Any = None, *, best: bool = True, trainer: Any = None, ckpt: str | None = None,
    epochs: int = 4, **options: Any,
) -> Any:  # fmt: skip
    """The callback after a training, or with an error's `callback`."""
    options = {**OPTIONS, "model": "net", "out": tmp_path / "out", "cache": cache, "tell": lambda text: None} | options
    callback: Any = OptkitCallback(**options)
    keeper = [pl.callbacks.ModelCheckpoint(tmp_path / "kept", monitor="score", mode="max")] if best else []
    made = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[callback, *keeper], logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=best, **(trainer or {}),
    )  # fmt: skip
    try:
        made.fit(module or Scripted(), *loaders(), ckpt_path=ckpt)
    except Exception as error:
        error.callback = callback  # type: ignore[attr-defined]
        error.epoch = made.current_epoch  # type: ignore[attr-defined]
        raise
    return callback


def steps(callback: Any) -> list[tuple[int, bool]]:
    return [(export.step, export.held) for export in callback.exports]


def test_the_end_is_what_training_ends_with(tmp_path: Path, cache: Path) -> None:
    told: list[str] = []
    callback = trained(tmp_path, cache, best=False, tell=told.append)
    assert steps(callback) == [(8, True)]
    assert epoch_of(callback.report.path("onnx")) == 3
    assert (tmp_path / "out" / "report.html").is_file()
    assert told[0].startswith("optkit: onnx can be made of this model, looked at in ")
    assert told[1].startswith("optkit: step 8: net: the delivery holds, in ")


def test_the_best_is_not_the_last(tmp_path: Path, cache: Path) -> None:
    callback = trained(tmp_path, cache, when="best", gate=["accuracy >= 99%"])
    assert steps(callback) == [(6, True)]
    assert epoch_of(callback.report.path("onnx")) == 2
    assert callback.exports[0].checkpoint == str(tmp_path / "kept" / "epoch=2-step=6.ckpt")


def test_every_best_replaces_the_last_or_has_its_own_folder(tmp_path: Path, cache: Path) -> None:
    out = str(tmp_path / "all" / "{epoch}-{step}")
    callback = trained(tmp_path, cache, when="every best", out=out)
    assert steps(callback) == [(2, True), (6, True)]
    folders = [export.folder for export in callback.exports]
    assert folders == [tmp_path / "all" / "0-2", tmp_path / "all" / "2-6"]
    assert [epoch_of(folder / "onnx") for folder in folders] == [0, 2]
    again = trained(tmp_path, cache, when="every best", out=out, keep=1)
    assert [folder.is_dir() for folder in folders] == [False, True]
    assert all(all(s["cached"].values()) for e in again.exports for s in e.report.steps), "converted twice"


def test_a_gate_that_the_best_meets_lets_an_early_failure_pass_but_not_unsaid(tmp_path: Path, cache: Path) -> None:
    told: list[str] = []
    options = {"when": "every best", "gate": ["accuracy >= 99%"]}
    callback = trained(tmp_path, cache, on_failure="keep training", tell=told.append, **options)
    assert steps(callback) == [(2, False), (6, True)]
    assert told[-1] == "optkit: did not hold before, and was bettered since: step 2 (epoch=0-step=2.ckpt)"
    with pytest.raises(CheckError, match=r"step 2 \(epoch=0-step=2\.ckpt\): onnx: gate accuracy >= 99%") as caught:
        trained(tmp_path / "now", cache, **options)
    assert caught.value.epoch == 1  # type: ignore[attr-defined]
    assert caught.value.report.exit_code == 1


def test_what_would_be_shipped_has_to_hold(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(CheckError, match=r"step 6 .*gate size <= 1 B") as caught:
        trained(tmp_path, cache, when="every best", gate=["size <= 1 B"], on_failure="keep training")
    assert steps(caught.value.callback) == [(2, False), (6, False)]  # type: ignore[attr-defined]
    assert not (tmp_path / "out" / "onnx").exists()
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_resumed_training_speaks_of_the_best_it_found_before(tmp_path: Path, cache: Path) -> None:
    trained(tmp_path, cache, when="every best", epochs=3)
    last = tmp_path / "kept" / "epoch=2-step=6.ckpt"
    callback = trained(tmp_path, cache, when="every best", ckpt=str(last))
    assert steps(callback) == [(6, True)]
    assert epoch_of(callback.report.path("onnx")) == 2
    assert all(all(s["cached"].values()) for s in callback.report.steps)


def test_training_goes_on_as_if_nothing_had_been(tmp_path: Path, cache: Path) -> None:
    """With dropout and shuffling, one draw more or a mode not put back would end with other weights."""

    def ends_with(callbacks: list[Any]) -> Any:
        pl.seed_everything(5, verbose=False)
        module = Learning()
        pl.Trainer(
            max_epochs=2, accelerator="cpu", callbacks=callbacks, logger=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0,
        ).fit(module, *loaders())  # fmt: skip
        return module, random.random(), np.random.uniform(), torch.rand(1)

    def keeper() -> Any:
        return pl.callbacks.ModelCheckpoint(tmp_path / "kept", monitor="score", mode="max", save_on_exception=False)

    plain, *drawn = ends_with([keeper()])
    callback: Any = OptkitCallback(
        **OPTIONS, model="net", when="every best", out=tmp_path / "out", cache=cache, tell=lambda text: None
    )
    watched, *drawn_too = ends_with([callback, keeper()])
    assert [export.epoch for export in callback.exports] == [0], "in the middle of it"
    assert drawn == drawn_too
    assert all(torch.equal(one, two) for one, two in zip(plain.parameters(), watched.parameters(), strict=True))
    assert [p.grad is None for p in plain.parameters()] == [p.grad is None for p in watched.parameters()]
    assert [m.training for m in plain.modules()] == [m.training for m in watched.modules()]


class Bare(Scripted):
    forward = pl.LightningModule.forward


class Refused(Scripted):
    def __init__(self) -> None:
        super().__init__()
        self.net = Branch()

    def training_step(self, batch: Any, index: int) -> None:
        raise AssertionError("training began")


class Branch(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("module", "options", "kind", "what"),
    [
        (Bare, {"model": None}, UserError, r"Bare defines no forward\(\).*\n  try: .*model='net'"),
        (Scripted, {"model": "nett"}, UserError, "Scripted has no 'nett'\n  try: did you mean 'net'"),
        (Scripted, {"model": "training"}, UserError, r"model='training' is a bool, not an nn\.Module"),
        (Scripted, {"when": "best", "best": False}, UserError, "no ModelCheckpoint says what is best"),
        (Scripted, {"steps": [{"id": "a", "use": "onnx.quantise"}]}, UserError, "did you mean 'onnx.quantize'"),
        (Scripted, {"data": {"y": JUDGE["x"]}}, UserError, "y"),
        (Refused, {}, (SourceError, StepError), "data-dependent|Could not guard|values"),
    ],
)
def test_what_cannot_be_is_said_before_training(
    tmp_path: Path, cache: Path, module: Any, options: dict[str, Any], kind: Any, what: str
) -> None:
    with pytest.raises(kind, match=what) as caught:
        trained(tmp_path, cache, module(), **{"best": True, **options})
    assert not caught.value.callback.exports
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"when": "bst"}, "when='bst' is not known\n  try: did you mean 'best'"),
        ({"on_failure": "warn"}, "on_failure='warn' is not known\n  try: one of: keep training, raise"),
        ({"dim": {}}, "OptkitCallback takes no 'dim'\n  try: did you mean 'dims'"),
        ({"to": ()}, "nothing says what to make"),
        ({"keep": 2}, "keep= has no effect"),
        ({"out": "build/{score}"}, r"\{score\} is not known\n  try: \{step\} and \{epoch\}"),
        ({"track": "tensorbord"}, "track='tensorbord' is not known"),
    ],
)
def test_a_callback_that_cannot_be(options: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what):
        OptkitCallback(**{**OPTIONS, **options})


def test_a_rehearsal_finds_what_the_backend_would_refuse(tmp_path: Path, cache: Path) -> None:
    class Fails(Scripted):
        def training_step(self, batch: Any, index: int) -> None:
            raise AssertionError("training began")

    class Odd(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(super().forward(x))

    module = Fails()
    module.net = Odd()
    with pytest.raises(StepError, match=r"rehearsal, before any training: onnx: .*bessel_j0"):
        trained(tmp_path, cache, module, rehearse=True, best=False)
    assert not list(tmp_path.glob("out*"))


def test_a_fast_run_exports_nothing(tmp_path: Path, cache: Path) -> None:
    told: list[str] = []
    callback = trained(tmp_path, cache, when="best", trainer={"fast_dev_run": True}, tell=told.append)
    assert not callback.exports
    assert told[-1] == "optkit: fast_dev_run exports nothing"
