"""What a callback is beside its trainer's hooks: its options, what it made, and the class with the trainer's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from optkit.integrations.exporting import Export, Exporter
from optkit.integrations.tracking import Tracker

if TYPE_CHECKING:
    from optkit.cache import Cache
    from optkit.report import Report


class ExportCallback:
    """A trainer's callback without its hooks, which say when what is exported.

    on_failure: "raise" ends the training at once with CheckError where a check or gate does not hold. "keep training"
        goes on, and raises at the end unless the best checkpoint of all does hold; for gates that an early one cannot
        meet.
    out: folder of deliveries and reports, default build/NAME; {step} and {epoch} in it give each export its own, of
        which `keep` stay. Otherwise the next export replaces it; what has not changed comes from the cache.
    track: "auto", what the trainer itself logs to and the MLflow or Weights & Biases run that is active; or a list of
        `optkit.integrations.tracking`; () for none. artifacts: whether deliveries are uploaded too.
    rehearse: convert the untrained model too, before training begins, so that an operator which a backend refuses is
        found then. Without it, the recipe is planned, the tools are looked for, the samples read, and the model
        captured.
    tell: gets a line per export; default: prints it to stderr.
    convert: all else that `optkit.convert` takes: recipe, to, steps, inputs, outputs, dims, data, fit, metric, gate,
        int8, example_inputs (by default the first samples of `data`), overrides, jobs, ...

    The model stays as it is: mode, device, gradients, random generators. In distributed training the first process
    converts while the others wait. Raises UserError where something cannot be.
    """

    OWN: ClassVar[Mapping[str, Any]] = {}
    """What one callback takes beside these, with its default; an attribute of the same name keeps it."""

    def __init__(
        self,
        *,
        model: str | Callable[[Any], Any] | None = None,
        when: str = "end",
        on_failure: str = "raise",
        out: str | Path | None = None,
        keep: int | None = None,
        track: str | Tracker | Sequence[Tracker] = "auto",
        artifacts: bool = True,
        rehearse: bool = False,
        cache: str | Path | Cache | None = None,
        tell: Callable[[str], None] | None = None,
        **convert: Any,
    ) -> None:
        super().__init__()
        self.model = model
        for name, default in self.OWN.items():
            setattr(self, name, convert.pop(name, default))
        self.exporter = Exporter(
            when=when, on_failure=on_failure, out=out, keep=keep, track=track, artifacts=artifacts, rehearse=rehearse,
            cache=cache, tell=tell, options=convert,
        )  # fmt: skip

    @property
    def exports(self) -> list[Export]:
        """What was converted so far, in order."""
        return self.exporter.exports

    @property
    def report(self) -> Report | None:
        """The report of the last export; None before the first."""
        return self.exports[-1].report if self.exports else None


def callback_class(hooks: type[ExportCallback], bases: Sequence[type]) -> type:
    """`OptkitCallback`: the hooks in a class of the trainer's own kind, whose docstring has all options."""
    shared = inspect.cleandoc(ExportCallback.__doc__ or "").partition("\n\n")[2]
    told = f"{inspect.cleandoc(hooks.__doc__ or '')}\n\n{shared}"
    return type("OptkitCallback", (hooks, *bases), {"__doc__": told, "__module__": hooks.__module__})
