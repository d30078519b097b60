"""`OptkitCallback` for Lightning: exports, gates and logs the model at the end of fit, or each time it is best.

    from optkit.integrations.lightning import OptkitCallback

    callback = OptkitCallback(
        model="net",                      # the part that is the model; left out: the LightningModule's own forward()
        to=["onnx", "openvino"],
        dims={"batch": (1, 8, 64)},
        data={"image": images, "label": labels},
        metric="accuracy",
        gate=["accuracy >= 95%"],
        when="best",
    )
    Trainer(callbacks=[callback, ModelCheckpoint(monitor="val_accuracy", mode="max")]).fit(module, loader)
    callback.report.path("onnx")

It is a callback of `lightning.pytorch` and of `pytorch_lightning`, whichever is there.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from functools import cache as memoise
from typing import TYPE_CHECKING, Any, ClassVar

from optkit.errors import UnavailableError, UserError
from optkit.integrations import ranks
from optkit.integrations.callback import ExportCallback, callback_class
from optkit.integrations.exporting import on_cpu, part_of
from optkit.integrations.tracking import LightningLogger

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")
_SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")


class _Hooks(ExportCallback):
    """Exports a model at the end of `fit`, or each time it is best, proves it, and lets training fail with it.

    model: the part of the LightningModule to export: a dotted attribute ("net"), or a function of it that returns an
        nn.Module; default: itself, by its forward().
    when: "end": the weights that training ends with; "best": at the end, those of the best checkpoint; "every best":
        those of each new best checkpoint, at once. Best is what a ModelCheckpoint with a `monitor` says; `checkpoint`
        names it where there are several.
    example_inputs: by default the LightningModule's example_input_array, else the first samples of `data`.
    """

    OWN: ClassVar[Mapping[str, Any]] = {"checkpoint": None}
    checkpoint: Any
    _active = False

    # ---------------------------------------------------------------------------------------------- Lightning's hooks

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Look for all that would fail later."""
        name = type(trainer.strategy).__name__
        if name in _SHARDED:
            raise UserError(
                f"{name} shards the weights, so that no process has the model",
                hint="convert the checkpoint after training: optkit.convert(module, ...)",
            )
        if self.exporter.when != "end" and not trainer.fast_dev_run:
            self._best_of(trainer)
            if type(trainer.strategy.checkpoint_io).__name__ == "AsyncCheckpointIO":
                raise UserError(
                    f"when={self.exporter.when!r}: AsyncCheckpointIO has not written a checkpoint yet when it is best",
                    hint="leave that plug-in out, or export when='end'",
                    subject="when",
                )
        if self.model is None and _has_no_forward(pl_module):
            parts = [child for child, _ in pl_module.named_children()]
            raise UserError(
                f"{type(pl_module).__name__} defines no forward(), so that it says nothing of what to export",
                hint=f"name the part that is the model: model={parts[0] if parts else 'net'!r}",
                subject="model",
            )
        example = getattr(pl_module, "example_input_array", None)
        if self.model is None and example is not None and not self._says_inputs():
            self.exporter.options["example_inputs"] = example
        self.exporter.begin(
            lambda: self._module(trainer, pl_module), lambda: [LightningLogger(logger) for logger in trainer.loggers]
        )
        self._active = not trainer.fast_dev_run
        if trainer.fast_dev_run:
            self.exporter.tell("optkit: fast_dev_run exports nothing")

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Export a checkpoint that became the best since the last batch."""
        self._look(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Export a checkpoint that became the best at the end of the last epoch."""
        self._look(trainer, pl_module)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Export what training ended with, and raise what does not hold."""
        if not self._active:
            return
        if self.exporter.when == "end":
            self.exporter.export(
                lambda: self._module(trainer, pl_module), step=trainer.global_step, epoch=trainer.current_epoch
            )
        else:
            best = self._best_of(trainer).best_model_path
            if not best:
                raise UserError(
                    "training ended without a best checkpoint",
                    hint="ModelCheckpoint saves after validation: is there a val_dataloader, and is the metric logged?",
                )
            if not self.exporter.exported(best):
                self._export_best(trainer, pl_module, best)
        self.exporter.finish()

    # ---------------------------------------------------------------------------------------------- the rest

    def _look(self, trainer: Any, pl_module: Any) -> None:
        if not self._active or self.exporter.when != "every best":
            return
        best = self._best_of(trainer).best_model_path
        if best and not self.exporter.exported(best):
            self._export_best(trainer, pl_module, best)

    def _export_best(self, trainer: Any, pl_module: Any, path: str) -> None:
        loaded: dict[str, Any] = {}

        def load() -> dict[str, Any]:
            loaded.update(trainer.strategy.load_checkpoint(path, weights_only=False))  # this training's own file
            return {"step": loaded["global_step"], "epoch": loaded["epoch"]}

        def make() -> Any:
            whole = _copied(trainer, pl_module)
            whole.on_load_checkpoint(loaded)
            whole.load_state_dict(loaded["state_dict"], strict=whole.strict_loading)
            return part_of(whole, self.model)

        self.exporter.export(make, **ranks.on_first(load), checkpoint=path)

    def _best_of(self, trainer: Any) -> Any:
        """The ModelCheckpoint that says what is best."""
        found = [self.checkpoint] if self.checkpoint is not None else trainer.checkpoint_callbacks
        known = [one for one in found if getattr(one, "monitor", None) and getattr(one, "save_top_k", 0)]
        if len(known) == 1:
            return known[0]
        if known:
            raise UserError(
                f"when={self.exporter.when!r}: {len(known)} ModelCheckpoints each say what is best",
                hint="OptkitCallback(checkpoint=...) names the one that counts",
                subject="checkpoint",
            )
        raise UserError(
            f"when={self.exporter.when!r}: no ModelCheckpoint says what is best",
            hint='add ModelCheckpoint(monitor="val_loss") to the callbacks, or export when="end"',
            subject="when",
        )

    def _says_inputs(self) -> bool:
        return any(self.exporter.options.get(name) is not None for name in ("example_inputs", "inputs", "recipe"))

    def _module(self, trainer: Any, pl_module: Any) -> Any:
        return part_of(_copied(trainer, pl_module), self.model)


def _copied(trainer: Any, pl_module: Any) -> Any:
    return on_cpu(pl_module, without=[trainer])


def _has_no_forward(pl_module: Any) -> bool:
    """Whether forward() is still the one of LightningModule, which calls nothing."""
    bases: list[Any] = [cls for cls in type(pl_module).__mro__ if cls.__name__ == "LightningModule"]
    return any(type(pl_module).forward is base.forward for base in bases)


@memoise
def _class(bases: tuple[type, ...]) -> type:
    return callback_class(_Hooks, bases)


def _bases() -> tuple[type, ...]:
    """The Callback classes there are: of what is imported, else of what is installed."""
    names = [name for name in _PACKAGES if name in sys.modules]
    names = names or [name for name in _PACKAGES if importlib.util.find_spec(name.partition(".")[0])]
    if not names:
        raise UnavailableError(
            "neither lightning nor pytorch-lightning is installed",
            hint='pip install "optkit[training]"',
            code="OPK-401",
        )
    return tuple(importlib.import_module(name).Callback for name in names)


if TYPE_CHECKING:
    OptkitCallback = _Hooks
else:

    def __getattr__(name: str) -> Any:
        if name == "OptkitCallback":
            return _class(_bases())
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["OptkitCallback"]
