"""`OptkitCallback` for the Hugging Face Trainer: exports, gates and logs the model at the end, or whenever it is best.

from optkit.integrations.transformers import OptkitCallback

callback = OptkitCallback(
    to=["onnx", "openvino"],
    inputs={"input_ids": {"shape": ["batch", "sequence"], "dtype": "int64"}},
    outputs=["logits"],
    dims={"batch": (1, 8, 32), "sequence": (2, 64, 128)},
    data=judging_samples,
    when="best",
)
Trainer(model, args, callbacks=[callback], ...).train()
callback.report.path("onnx")
"""

from __future__ import annotations

import json
import os
from functools import cache as memoise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.errors import UserError
from optkit.integrations import ranks
from optkit.integrations.callback import ExportCallback, callback_class
from optkit.integrations.exporting import on_cpu, part_of
from optkit.integrations.tracking import TensorBoard, Tracker
from optkit.plugin import need

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class _Hooks(ExportCallback):
    """Exports a model at the end of training, or each time it is best, proves it, and lets training fail with it.

    model: the part of the model to export: a dotted attribute, or a function of it that returns an nn.Module; default:
        itself, by its forward() without labels.
    when: "end": the weights that training ends with, which are the best with load_best_model_at_end; "best": at the
        end, those of the best checkpoint; "every best": those of each checkpoint that is saved as the new best, at
        once. Best is by the training arguments' metric_for_best_model.
    track: "auto" is what report_to names, and the runs that are active.
    """

    # ---------------------------------------------------------------------------------------------- the Trainer's hooks

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Look for all that would fail later."""
        if sharded := [name for name in ("fsdp", "deepspeed") if getattr(args, name, None)]:
            raise UserError(
                f"{sharded[0]} shards the weights, so that no process has the model",
                hint="convert the checkpoint after training: optkit.convert(model, ...)",
            )
        if self.exporter.when != "end" and (
            args.metric_for_best_model is None or str(_word(args.save_strategy)) == "no"
        ):
            lacking = "metric_for_best_model" if args.metric_for_best_model is None else "save_strategy"
            raise UserError(
                f"when={self.exporter.when!r}: the training arguments name no {lacking}, so no checkpoint is the best",
                hint='TrainingArguments(metric_for_best_model="loss", eval_strategy="epoch", save_strategy="epoch"), '
                'or export when="end"',
                subject="when",
            )
        self.exporter.begin(lambda: self._module(model), lambda: _tensorboard(args))

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Export a checkpoint that is saved as the new best: its weights are those in memory."""
        if self.exporter.when == "every best" and state.best_global_step == state.global_step:
            self.exporter.export(
                lambda: self._module(model), step=state.global_step, epoch=state.epoch or 0.0,
                checkpoint=_best_of(state),
            )  # fmt: skip

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Export what training ended with, and raise what does not hold."""
        if self.exporter.when == "end":
            self.exporter.export(lambda: self._module(model), step=state.global_step, epoch=state.epoch or 0.0)
        else:
            best = _best_of(state)
            if not self.exporter.exported(best):
                self._export_saved(model, best)
        self.exporter.finish()

    # ---------------------------------------------------------------------------------------------- the rest

    def _export_saved(self, model: Any, folder: str) -> None:
        def make() -> Any:
            whole = on_cpu(model)
            _load(whole, Path(folder))
            return part_of(whole, self.model)

        self.exporter.export(make, **ranks.on_first(lambda: _when(Path(folder))), checkpoint=folder)

    def _module(self, model: Any) -> Any:
        return part_of(on_cpu(model), self.model)


def _word(value: Any) -> Any:
    return getattr(value, "value", value)


def _best_of(state: Any) -> str:
    """`_best`, as the first process sees it: others may be on machines that do not have the folder."""
    return str(ranks.on_first(lambda: {"best": _best(state)})["best"])


def _best(state: Any) -> str:
    """The folder of the best checkpoint. Raises UserError where there is none, or the best was not saved."""
    folder, step = state.best_model_checkpoint, state.best_global_step
    if folder is None or (step and Path(folder).name != f"checkpoint-{step}"):
        what = f"step {step} was best, but not saved" if step else "training ended without a best checkpoint"
        raise UserError(what, hint="give save_strategy and eval_strategy the same steps, or export when='end'")
    return str(folder)


def _when(folder: Path) -> dict[str, Any]:
    """The step and the epoch of a checkpoint."""
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        return {"step": int(state["global_step"]), "epoch": float(state["epoch"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is no whole checkpoint: {error}", hint="is it still being written or moved?"
        ) from error


def _load(model: Any, folder: Path) -> None:
    """Put a checkpoint's weights into a model. Raises UserError for one that holds no whole model."""
    from optkit.formats.torch.files import fit_weights, read_weights

    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    index = folder / "model.safetensors.index.json"
    if path is not None:
        state = read_weights(path)
    elif index.is_file():
        path, state = index, {}
        for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())):
            state |= read_weights(folder / name)
    else:
        raise UserError(
            f"{folder} holds none of {', '.join(_WEIGHTS)}",
            hint="of an adapter's checkpoint, load the best at the end: load_best_model_at_end=True and when='end'",
        )
    own = model.state_dict()
    for name in [name for name in own if name not in state]:  # of tied weights, one name is in the file
        alias = next((other for other in state if other in own and own[other].data_ptr() == own[name].data_ptr()), None)
        if alias is not None:
            state[name] = state[alias]
    fit_weights(model, state, path)


def _tensorboard(args: Any) -> list[Tracker]:
    """Where the Trainer's own TensorBoard callback, which began before this one, writes to."""
    if "tensorboard" not in (args.report_to or ()):
        return []
    named = os.environ.get("TENSORBOARD_LOGGING_DIR")
    runs = Path(args.output_dir) / "runs"
    folders = sorted((p for p in runs.glob("*") if p.is_dir()), key=lambda p: p.stat().st_mtime)
    return [TensorBoard(Path(named).expanduser() if named else folders[-1] if folders else runs / "optkit")]


@memoise
def _class() -> type:
    return callback_class(_Hooks, (need("transformers").TrainerCallback,))


if TYPE_CHECKING:
    OptkitCallback = _Hooks
else:

    def __getattr__(name: str) -> Any:
        if name == "OptkitCallback":
            return _class()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["OptkitCallback"]
