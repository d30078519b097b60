"""How far a student is from its teacher: terms over outputs, layers, attention maps and labels, and their sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optkit.errors import DataError, OptkitError, SourceError, StepError, did_you_mean
from optkit.formats.torch.call import TorchModel, dtype_name
from optkit.formats.torch.modes import evaluate
from optkit.formats.torch_training.data import Batch, TrainingData
from optkit.formats.torch_training.distill_layers import Taps, is_map, projection, width_axis
from optkit.formats.torch_training.distill_options import TEMPERATURE, Loss
from optkit.plugin import need

TINY = 1e-12
IGNORED = -100
"""The label that counts for nothing, as in torch's cross_entropy."""


class Distillation:
    """The losses of a student that learns from a teacher, by name. helpers: the projections between their layers.

    mask: an input of (batch, position) whose zeros mark positions that do not count. Made by running both models on the
    first samples: raises SourceError, StepError or DataError for whatever does not fit.
    """

    def __init__(
        self, student: TorchModel, teacher: TorchModel, losses: Sequence[Loss], data: TrainingData, *,
        mask: str | None, size: int, seed: int,
    ) -> None:  # fmt: skip
        torch = need("torch")
        self.student, self.teacher, self.mask = student, teacher, mask
        self.helpers = torch.nn.ModuleDict()
        layered = [loss for loss in losses if loss.layers]
        self.mine = Taps(student, {path: None for loss in layered for path in loss.layers}, "student")
        self.theirs = Taps(teacher, {path: None for loss in layered for path in loss.layers.values()}, "teacher")
        if mask is not None and mask not in student.input_names:
            raise StepError(f"the model has no input {mask!r}", subject="with.mask",
                            hint=did_you_mean(mask, student.input_names))  # fmt: skip
        first = next(data.batches(size))
        evaluate(student.source.module)
        with torch.no_grad():
            outputs, wanted = self.answers(first)
        _alike(outputs, wanted)
        self.chosen = [] if losses else _default(wanted)
        self.losses = tuple(losses or self.chosen)
        self.names = _names(self.losses)
        self.picked: dict[tuple[str, str, str], tuple[int, int]] = {}
        self.masked = False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for loss in self.losses:
                self._fit(loss, wanted, data)
        self.helpers.to(data.device)
        with torch.no_grad():
            for loss in self.losses:
                self._value(loss, outputs, wanted, first)
        if mask is not None and not self.masked:
            raise StepError(f"nothing that is compared has the axes of {mask}, {tuple(first.feeds[mask].shape)}",
                            subject="with.mask", hint="leave out mask")  # fmt: skip

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """Each loss's weighted value on a batch."""
        outputs, wanted = self.answers(batch)
        return {
            name: loss.weight * self._value(loss, outputs, wanted, batch)
            for name, loss in zip(self.names, self.losses, strict=True)
        }

    def close(self) -> None:
        """Student and teacher are as they were: nothing looks into their layers."""
        self.mine.close()
        self.theirs.close()

    def answers(self, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the student and the teacher give, by name."""
        self.mine.forget()
        self.theirs.forget()
        with need("torch").no_grad():
            wanted = _called(self.teacher, batch, "teacher")
        return _called(self.student, batch, "student"), wanted

    # --- what is asked for, tried on the first samples

    def _fit(self, loss: Loss, wanted: dict[str, Any], data: TrainingData) -> None:
        for mine, theirs in loss.layers.items():
            self._pick(loss, mine, theirs)
        if loss.kind in ("kl", "cosine", "labels"):
            tensor = wanted[_output(loss, wanted)]
            if not -tensor.dim() <= (loss.axis or -1) < tensor.dim():
                raise StepError(f"axis {loss.axis} of an output of shape {tuple(tensor.shape)}", subject="with.losses",
                                hint=f"-1 is the last one, {tensor.dim() - 1}")  # fmt: skip
        elif loss.output is not None:
            _output(loss, wanted)
        if loss.kind == "labels":
            data.label(loss.label)

    def _pick(self, loss: Loss, mine: str, theirs: str) -> None:
        """Choose of two layers' results the tensors to compare, and put a projection between unlike widths."""
        numbers = []
        for taps, path in ((self.mine, mine), (self.theirs, theirs)):
            found = [
                number for number, tensor in enumerate(taps.tensors(path))
                if (is_map(tensor) if loss.kind == "attention" else tensor.is_floating_point())
            ]  # fmt: skip
            if not found:
                what = "attention map: rows of weights that sum to one" if loss.kind == "attention" else "float tensor"
                raise StepError(f"the {taps.who}'s layer {path!r} gives no {what}", subject="with.losses",
                                hint="name the layer that gives them; attention layers give their weights in their "
                                "plain form alone (transformers: attn_implementation eager)"
                                if loss.kind == "attention" else "name another layer")  # fmt: skip
            numbers.append(found[0])
        self.picked[loss.kind, mine, theirs] = numbers[0], numbers[1]
        one, other = self.mine.tensors(mine)[numbers[0]], self.theirs.tensors(theirs)[numbers[1]]
        shapes = f"the student's {mine} gives {tuple(one.shape)}, the teacher's {theirs} {tuple(other.shape)}"
        if loss.kind == "attention":
            if one.shape[-2:] != other.shape[-2:] or one.shape[0] != other.shape[0]:
                raise StepError(shapes, subject="with.losses", hint="compare maps over the same positions")
            return
        try:
            axis = width_axis(tuple(one.shape), tuple(other.shape))
        except ValueError as error:
            raise StepError(f"{shapes}: {error}", subject="with.losses",
                            hint="layers may differ in their width alone: the last axis, or an image's "
                            "channels") from error  # fmt: skip
        if axis is not None:
            self.helpers[_key(mine, theirs)] = projection(one.shape[axis], other.shape[axis], axis)

    # --- values

    def _value(self, loss: Loss, outputs: dict[str, Any], wanted: dict[str, Any], batch: Batch) -> Any:
        if loss.layers:
            values = [self._between(loss, mine, theirs, batch) for mine, theirs in loss.layers.items()]
            return sum(values) / len(values)
        if loss.kind == "mse":
            names = [loss.output] if loss.output else _floats(wanted)
            return sum(self._mse(outputs[n], wanted[n], batch) for n in names) / len(names)
        name = _output(loss, wanted)
        mine, theirs = outputs[name].float(), wanted[name].float()
        if loss.kind == "cosine":
            return self._cosine(mine, theirs, batch)
        axis = -1 if loss.axis is None else loss.axis
        if loss.kind == "labels":
            return _cross_entropy(mine.movedim(axis, -1), batch, loss.label, name)
        return self._kl(mine.movedim(axis, -1), theirs.movedim(axis, -1), loss.temperature or TEMPERATURE, batch)

    def _between(self, loss: Loss, mine: str, theirs: str, batch: Batch) -> Any:
        one, other = self.picked[loss.kind, mine, theirs]
        got, want = self.mine.tensors(mine)[one].float(), self.theirs.tensors(theirs)[other].float()
        if loss.kind == "attention":
            return self._attention(got, want, batch)
        if (key := _key(mine, theirs)) in self.helpers:
            got = self.helpers[key](got).float()
        return self._cosine(got, want, batch) if loss.distance == "cosine" else self._mse(got, want, batch)

    def _kl(self, got: Any, want: Any, temperature: float, batch: Batch) -> Any:
        """As in Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015): times its square."""
        log_softmax = need("torch").nn.functional.log_softmax
        logs = log_softmax(want / temperature, -1)
        rows = (logs.exp() * (logs - log_softmax(got / temperature, -1))).sum(-1)
        return temperature**2 * self._mean(rows, batch, got.dim())

    def _mse(self, got: Any, want: Any, batch: Batch) -> Any:
        """The mean squared error over the teacher's mean square: 1 for a student that gives zeros, at any scale."""
        got, want = got.float(), want.float()
        squares = self._mean(want**2, batch, want.dim())
        return self._mean((got - want) ** 2, batch, got.dim()) / squares.clamp(min=TINY)

    def _cosine(self, got: Any, want: Any, batch: Batch) -> Any:
        similarity = need("torch").nn.functional.cosine_similarity(got, want, dim=-1, eps=TINY)
        return self._mean(1 - similarity, batch, got.dim())

    def _attention(self, got: Any, want: Any, batch: Batch) -> Any:
        """The divergence of the maps' rows; of all heads together where their number differs.

        As in Wang et al., "MiniLM" (NeurIPS 2020), there for the last layer.
        """
        if got.shape != want.shape:
            got, want = (t.mean(1) if t.dim() > 3 else t for t in (got, want))
        rows = (want * (want.clamp(min=TINY).log() - got.clamp(min=TINY).log())).sum(-1)
        if self.mask is not None and rows.dim() == 3:
            rows = rows.movedim(1, -1)  # (batch, position, head), as the mask's axes go
        return self._mean(rows, batch, got.dim())

    def _mean(self, tensor: Any, batch: Batch, rank: int) -> Any:
        """The mean, over what the mask counts where what is compared, of `rank` axes, has more than the mask's."""
        mask = batch.feeds[self.mask] if self.mask is not None else None
        if mask is None or rank <= mask.dim() or tensor.shape[: mask.dim()] != mask.shape:
            return tensor.mean()
        self.masked = True
        weight = (mask != 0).to(tensor.dtype)
        each = tensor.flatten(mask.dim()).mean(-1) if tensor.dim() > mask.dim() else tensor
        return (each * weight).sum() / weight.sum().clamp(min=1)


def _called(model: TorchModel, batch: Batch, who: str) -> dict[str, Any]:
    """A model's outputs by name, with gradients where these are on. Raises SourceError that says whose they are."""
    try:
        results = model.module(*(batch.feeds[name].clone() for name in model.input_names))
    except OptkitError as error:
        error.what = f"the {who}: {error.what}"
        raise
    except Exception as error:  # the model's own code
        shapes = ", ".join(f"{n} {dtype_name(f.dtype)}{list(f.shape)}" for n, f in batch.feeds.items())
        raise SourceError(
            f"the {who} fails on {shapes}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
            subject="model", details=f"{type(error).__name__}: {error}",
            hint="call it by hand in train() and in eval() mode, with gradients",
        ) from error  # fmt: skip
    assert model.output_names is not None
    return dict(zip(model.output_names, results, strict=True))


def _alike(outputs: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises StepError unless the student gives what the teacher does."""
    if set(outputs) != set(wanted):
        raise StepError(
            f"the student gives {', '.join(outputs)}, the teacher {', '.join(wanted)}",
            subject="with.student", hint="outputs of the same names; `outputs:` in the recipe names them, in order",
        )  # fmt: skip
    for name, tensor in wanted.items():
        mine = outputs[name]
        if mine.shape != tensor.shape or mine.is_floating_point() != tensor.is_floating_point():
            raise StepError(
                f"output {name!r} of the student is {dtype_name(mine.dtype)}{list(mine.shape)}, of the teacher "
                f"{dtype_name(tensor.dtype)}{list(tensor.shape)}",
                subject="with.student", hint="a student has the teacher's outputs, in name, shape and type",
            )  # fmt: skip


def _floats(outputs: dict[str, Any]) -> list[str]:
    return [name for name, tensor in outputs.items() if tensor.is_floating_point()]


def _output(loss: Loss, outputs: dict[str, Any]) -> str:
    """The output a loss is about. Raises StepError."""
    known = _floats(outputs)
    if loss.output in known:
        return str(loss.output)
    if loss.output is None and len(known) == 1:
        return known[0]
    what = f"the model has no float output {loss.output!r}" if loss.output else f"which of {', '.join(known)} is meant?"
    raise StepError(f"{loss.kind}: {what}", subject="with.losses",
                    hint=did_you_mean(loss.output or "", known) or "name it with output:")  # fmt: skip


def _default(wanted: dict[str, Any]) -> list[Loss]:
    """A loss per float output that fits whatever it is: the angle for embeddings of length one, else the squares."""
    torch = need("torch")
    made = []
    for name in _floats(wanted):
        length = wanted[name].float().norm(dim=-1) if wanted[name].dim() > 1 else torch.zeros(())
        unit = bool(torch.allclose(length, torch.ones_like(length), atol=1e-3))
        kind = "cosine" if unit and wanted[name].shape[-1] > 1 else "mse"
        made.append(Loss.model_validate({"kind": kind, "output": name}))
    if not made:
        raise StepError("the model has no float output to learn from", subject="with.losses",
                        hint="name layers: losses: [{kind: hidden, layers: {...}}]")  # fmt: skip
    return made


def _names(losses: Sequence[Loss]) -> list[str]:
    """A name per loss, such as "kl" or "mse logits", each once."""
    names: list[str] = []
    for loss in losses:
        plain = f"{loss.kind} {loss.output}" if loss.output else loss.kind
        again = sum(name == plain or name.startswith(f"{plain} (") for name in names)
        names.append(f"{plain} ({again + 1})" if again else plain)
    return names


def _key(mine: str, theirs: str) -> str:
    return f"{mine} to {theirs}".replace(".", "/")


def _cross_entropy(scores: Any, batch: Batch, label: str | None, output: str) -> Any:
    torch = need("torch")
    wanted = batch.labels[label if label is not None else next(iter(batch.labels))]
    if wanted.is_floating_point() or wanted.shape != scores.shape[:-1]:
        raise DataError(f"labels are {dtype_name(wanted.dtype)}{list(wanted.shape)}, but the scores of {output!r} are "
                        f"{list(scores.shape)}", subject="data",
                        hint="class numbers, one per row of scores; axis: says which the classes are on")  # fmt: skip
    wanted = wanted.long()
    off = wanted[(wanted != IGNORED) & ((wanted < 0) | (wanted >= scores.shape[-1]))]
    if off.numel():
        raise DataError(f"label {int(off[0])} is none of the {scores.shape[-1]} classes of {output!r}", subject="data",
                        hint=f"number classes from 0; {IGNORED} counts for nothing")  # fmt: skip
    return torch.nn.functional.cross_entropy(scores.flatten(0, -2), wanted.flatten(), ignore_index=IGNORED)


__all__ = ["Distillation"]
