"""A training loop that gives the same weights bit for bit, whether it was killed and taken up again or not.

What decides a step is a function of seed, epoch and step, or lies in the checkpoint: weights, optimiser, random states,
the sums of the running epoch and the best weights so far. The order of the samples and the learning rate are computed
anew. Best is what has the lowest loss on the samples held out, measured in float32 at the end of each epoch.
"""

from __future__ import annotations

import fnmatch
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optkit.errors import StepError, did_you_mean
from optkit.formats.torch.modes import evaluate
from optkit.formats.torch_pruning import sparse as torch_sparse
from optkit.formats.torch_training import checkpoint as torch_checkpoint
from optkit.formats.torch_training.data import Batch, TrainingData
from optkit.formats.torch_training.options import BATCH_SIZE, EPOCHS, Training
from optkit.plugin import need

BEST = "best.safetensors"
"""The best weights of a training that went out of bounds."""

Losses = Mapping[str, Any]
"""The weighted terms of a batch's loss, as scalar tensors."""

Progress = Callable[[str, "float | None"], None]


@dataclass(frozen=True)
class Learner:
    """What learns. module: trained and evaluated. helpers: trained beside it. losses: of a batch.

    still: the module stays in evaluation mode while it learns, without dropout, its batch norms as they are.
    otherwise: what to do, beside a smaller learning rate, where nothing was learned. scores: measures the recipe's
    metrics on the samples held out; for the user to see: what is best, the loss says. sparse: weights that are zero at
    first stay so.
    """

    module: Any
    helpers: Any
    losses: Callable[[Batch], Losses]
    still: bool = False
    otherwise: str = ""
    scores: Callable[[], Mapping[str, Mapping[str, Any]]] | None = None
    sparse: bool = False

    def state(self) -> dict[str, Any]:
        """Copies of all tensors that a training changes."""
        whole = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        whole |= {f"helpers.{k}": v for k, v in self.helpers.state_dict().items()}
        return {key: value.detach().to("cpu", copy=True) for key, value in whole.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave, in place."""
        for prefix, part in (("module.", self.module), ("helpers.", self.helpers)):
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            part.load_state_dict(own, strict=True)


@dataclass
class State:
    """Where a training has got to. epoch, position: the batch that comes next. sums: of the running epoch."""

    threads: int
    epoch: int = 0
    position: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    rows: int = 0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    stale: int = 0
    finished: bool = False


@dataclass(frozen=True)
class Trained:
    """What came of it; the learner has the best weights. resumed: the step it went on from, None for a whole run."""

    state: State
    batch_size: int
    steps: int
    resumed: int | None
    seconds: float


def train(
    learner: Learner, data: TrainingData, how: Training, *, seed: int, threads: int, device: str, kept: Path,
    progress: Progress,
) -> Trained:  # fmt: skip
    """Train until the steps are done, or the held-out loss no longer falls. kept: where checkpoints lie.

    Raises StepError where the loss or its gradient is not finite, and where the held-out loss never fell.
    """
    saved = torch_checkpoint.load(kept)
    threads = int(saved["state"]["threads"]) if saved else threads  # the same sums in the same order
    with torch_checkpoint.reproducible(seed, threads, device):
        loop = _Loop(learner, data, how, seed, device, kept, progress, State(threads))
        if saved:
            loop.restore(saved)
        resumed = loop.state.step if saved else None
        started = time.perf_counter()
        loop.run()
    return Trained(loop.state, loop.size, loop.total, resumed, time.perf_counter() - started)


def held_out_loss(learner: Learner, data: TrainingData, size: int) -> dict[str, float]:
    """The mean of each term over the samples held out, in evaluation mode, and in "loss" their sum."""
    torch = need("torch")
    sums: dict[str, float] = {}
    rows = 0
    evaluate(learner.module)
    learner.helpers.eval()
    with torch.no_grad():
        for batch in data.held_out_batches(size):
            _add(sums, learner.losses(batch), batch.rows)
            rows += batch.rows
    means = {name: value / rows for name, value in sums.items()}
    return {"loss": sum(means.values()), **means}


def _add(sums: dict[str, float], losses: Losses, rows: int) -> None:
    for name, value in losses.items():
        sums[name] = sums.get(name, 0.0) + float(value.detach()) * rows


class _Loop:
    def __init__(
        self, learner: Learner, data: TrainingData, how: Training, seed: int, device: str, kept: Path,
        progress: Progress, state: State,
    ) -> None:  # fmt: skip
        self.learner, self.data, self.how, self.seed, self.device = learner, data, how, seed, device
        self.kept, self.progress, self.state = kept, progress, state
        self.size = data.batch_size(how.batch_size, BATCH_SIZE)
        per_epoch = len(data.order(self.size, seed, 0))
        self.total = how.steps or per_epoch * (how.epochs or EPOCHS)
        self.epochs = -(-self.total // per_epoch)
        self.optimizer = _optimizer(learner, how)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.begun = self.saved_at = time.perf_counter()
        self.begun_at = 0
        self.scored = learner.scores is not None
        self.zeros = torch_sparse.zeros_of(learner.module) if learner.sparse else {}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.state = State(**saved["state"])
        if not self.state.finished:  # then what is left to do is to take the best weights
            self.learner.load(saved["learner"])
            self.optimizer.load_state_dict(saved["optimizer"])
            torch_checkpoint.set_random_states(saved["random"])
        self.begun_at = self.state.step

    def save(self) -> None:
        """Write a checkpoint."""
        going_on = {} if self.state.finished else {
            "learner": self.learner.state(), "optimizer": self.optimizer.state_dict(),
            "random": torch_checkpoint.random_states(),
        }  # fmt: skip
        torch_checkpoint.save({"state": vars(self.state), **going_on}, self.kept)
        self.saved_at = time.perf_counter()

    def run(self) -> None:
        state = self.state
        if not state.best:
            first = held_out_loss(self.learner, self.data, self.size)
            self.judge(first)
        while not state.finished:
            self.epoch()
        if state.best["epoch"] == 0:
            early = state.step < self.total
            raise StepError(
                f"nothing was learned: the held-out loss was {state.epochs[0]['held_out']['loss']:.4g} at first and "
                f"never below it in {state.step} steps"
                + (f" of {self.total}, after which patience: {self.how.patience} ended it" if early else ""),
                subject="with.lr",
                hint=f"a smaller lr (it is {self.how.lr:g}), or "
                + ("more patience" if early else "more epochs") + self.learner.otherwise,
            )  # fmt: skip
        self.learner.load(state.best["learner"])

    def epoch(self) -> None:
        state = self.state
        order = self.data.order(self.size, self.seed, state.epoch)
        self.learner.module.train(not self.learner.still)
        self.learner.helpers.train()
        for position in range(state.position, len(order)):
            if state.step == self.total:
                break
            self.step(self.data.batch(order[position]))
            state.position = position + 1
            if time.perf_counter() - self.saved_at >= self.how.checkpoint_seconds:
                self.save()
        state.epoch, state.position = state.epoch + 1, 0
        self.judge(held_out_loss(self.learner, self.data, self.size))
        state.sums, state.rows = {}, 0
        tired = self.how.patience is not None and state.stale >= self.how.patience
        state.finished = tired or state.step == self.total
        if state.finished or time.perf_counter() - self.saved_at >= self.how.checkpoint_seconds:
            self.save()

    def step(self, batch: Batch) -> None:
        torch, state = need("torch"), self.state
        if self.learner.still:
            evaluate(self.learner.module)  # or what it keeps would be of the weights before
        for group in self.optimizer.param_groups:
            group["lr"] = self.how.lr * factor(self.how, state.step, self.total)
        half = self.how.precision == "bfloat16"
        with torch.autocast(self.device.partition(":")[0], torch.bfloat16) if half else nullcontext():
            losses = self.learner.losses(batch)
            loss = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        if not torch.isfinite(loss):
            raise self.lost(f"the loss is {float(loss.detach()):g}", 1)
        try:
            loss.backward()
        except RuntimeError as error:  # the model's own code, such as a tensor that is written over
            if not loss.requires_grad:
                raise StepError(
                    "the loss depends on no parameter that learns: no gradient comes through the model's forward",
                    subject="model", details=str(error),
                    hint="take torch.no_grad(), .detach() and .item() out of forward, or name other losses",
                ) from error  # fmt: skip
            raise StepError(
                f"the model's gradient cannot be computed: {str(error).strip().partition(chr(10))[0]}",
                subject="model", details=str(error),
                hint="train it by hand in torch: x = x + y in place of x += y often mends it",
            ) from error  # fmt: skip
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.how.clip_norm or math.inf)
        if not torch.isfinite(norm):
            raise self.lost("the loss has a gradient that is not finite", 1)
        self.optimizer.step()
        torch_sparse.put_back(self.learner.module, self.zeros)
        state.step += 1
        state.rows += batch.rows
        _add(state.sums, losses, batch.rows)
        self.tell()

    def lost(self, what: str, ahead: int = 0) -> StepError:
        """The error for numbers that went out of bounds. ahead: the steps that were begun and not finished."""
        return StepError(
            f"{what} at step {self.state.step + ahead} of {self.total}",
            subject="with.lr",
            hint=f"a smaller lr (it is {self.how.lr:g})"
            + ("" if self.how.clip_norm else " or clip_norm: 1")
            + (", or precision: float32" if self.how.precision != "float32" else "")
            + self.keep_best(),
        )

    def keep_best(self) -> str:
        """Write the best weights beside the checkpoints, and say where; nothing where none are better than at first."""
        best = self.state.best
        if not best or best["epoch"] == 0:
            return ""
        path = self.kept / BEST
        weights = {k.removeprefix("module."): v for k, v in best["learner"].items() if k.startswith("module.")}
        need("safetensors.torch", "safetensors").save_file({k: v.clone() for k, v in weights.items()}, str(path))
        return (f"; the best weights until then, epoch {best['epoch']}'s with a held-out loss of "
                f"{best['held_out']['loss']:.4g}, are kept in {path}")  # fmt: skip

    def judge(self, held: Mapping[str, float]) -> None:
        """Note an epoch, and its weights if they are the best."""
        state = self.state
        if not math.isfinite(held["loss"]):
            raise self.lost(f"the held-out loss is {held['loss']:g}") if state.step else StepError(
                f"the held-out loss is {held['loss']:g} before anything was learned", subject="model",
                hint="the student or the teacher gives outputs that are not finite: look at what they are fed",
            )  # fmt: skip
        means = {name: value / state.rows for name, value in state.sums.items()} if state.rows else {}
        trained = {"loss": sum(means.values()), **means} if means else None
        metrics = self.scores()
        state.epochs.append({"epoch": state.epoch, "step": state.step, "train": trained, "held_out": dict(held),
                             **({"metrics": metrics} if metrics else {})})  # fmt: skip
        if not state.best or held["loss"] < state.best["held_out"]["loss"]:
            state.best = {**state.epochs[-1], "learner": self.learner.state()}
            state.stale = 0
        else:
            state.stale += 1

    def scores(self) -> dict[str, dict[str, Any]]:
        """The recipe's metrics of the model as it is; one that the samples cannot feed is tried once."""
        if not self.scored or self.learner.scores is None:
            return self.state.epochs[-1].get("metrics", {}) if self.state.epochs else {}
        with need("torch").no_grad():
            found = {name: dict(score) for name, score in self.learner.scores().items()}
        self.scored = any("problem" not in score for score in found.values())
        return found

    def tell(self) -> None:
        state = self.state
        rate = (time.perf_counter() - self.begun) / (state.step - self.begun_at)
        mean = sum(state.sums.values()) / state.rows
        held = state.epochs[-1]["held_out"]["loss"]
        best = state.best["held_out"]["loss"]
        metrics = [score["text"] for score in state.epochs[-1].get("metrics", {}).values() if "text" in score]
        self.progress(
            f"epoch {state.epoch + 1} of {self.epochs}: loss {mean:.4g}, held out {held:.4g}"
            + (f" (best {best:.4g})" if best < held else "")
            + "".join(f", {text}" for text in metrics)
            + f", {_duration(rate * (self.total - state.step))} left",
            state.step / self.total,
        )


def _optimizer(learner: Learner, how: Training) -> Any:
    """The optimiser over what is to learn; freezes the rest. Raises StepError for a glob that matches nothing."""
    torch = need("torch")
    named = dict(learner.module.named_parameters())
    for pattern in how.freeze:
        if not fnmatch.filter(named, pattern):
            raise StepError(f"no parameter is called {pattern!r}", subject="with.freeze",
                            hint=did_you_mean(pattern, named))  # fmt: skip
    for name, parameter in named.items():
        if parameter.is_floating_point() and parameter.dtype not in (torch.float32, torch.float64):
            raise StepError(f"the student's {name} is {str(parameter.dtype).removeprefix('torch.')}, in which nothing "
                            "can be learned", subject="with.student", hint="build it in float32")  # fmt: skip
        parameter.requires_grad_(
            parameter.is_floating_point() and not any(fnmatch.fnmatchcase(name, p) for p in how.freeze)
        )
    learns = [p for p in (*learner.module.parameters(), *learner.helpers.parameters()) if p.requires_grad]
    if not any(p.requires_grad for p in named.values()):
        raise StepError("no parameter of the student could learn", subject="with.freeze" if how.freeze else "model",
                        hint="freeze fewer" if how.freeze else "give a model with parameters")  # fmt: skip
    groups = [
        {"params": [p for p in learns if p.dim() > 1], "weight_decay": how.weight_decay},
        {"params": [p for p in learns if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if how.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=how.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=how.lr)


def factor(how: Training, step: int, total: int) -> float:
    """What the learning rate is multiplied with at a step, counted from 0: a linear rise, then the schedule."""
    warm = round(how.warmup * total)
    if step < warm:
        return (step + 1) / (warm + 1)
    if how.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


__all__ = ["Learner", "Losses", "State", "Trained", "factor", "held_out_loss", "train"]
