"""How fast a pass's candidates are on a runtime, beside the model it works on: each converted, and raced for real."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from optkit.artifact import Artifact, Dim, TensorSpec
from optkit.models.signatures import promised
from optkit.parity.cases import batch_dim
from optkit.parity.tape import Tape
from optkit.plugin import Context, Pass
from optkit.registry import conversion
from optkit.speed.race import race
from optkit.speed.ratio import Ratio

if TYPE_CHECKING:
    from optkit.plugin import Tensors

FEEDS = 4
"""Batches that the models take turns on."""


@dataclass
class Trials:
    """What measures a pass's candidates: `optkit.plugin.Trial`. use: the pass. parent: its input. target: the format.

    context: the pass's own; folders are made in its `scratch`, and its samples are fed, or others made up.
    """

    use: Pass
    parent: Artifact
    target: str
    context: Context
    base: Artifact | None = None
    feeds: Path | None = None

    def __call__(self, candidate: Path, about: float = 1.0, seconds: float = 2.0) -> Ratio:
        """How many times as fast the model in `candidate` is as the pass's input."""
        from optkit.tasks.making import reread

        if self.base is None:
            self.base = self._converted(self.parent, self.context.scratch / "trial-base")
        with tempfile.TemporaryDirectory(prefix="trial-", dir=self.context.scratch) as temporary:
            folder = Path(temporary)
            made = self._converted(reread(self.use, self.parent, candidate, self.context), folder / "candidate")
            orders = {
                name: {"artifact": artifact.to_json(), "feeds": str(self._fed()), "device": self.context.device,
                       "threads": self.context.threads}
                for name, artifact in (("the step's input", self.base), ("the candidate", made))
            }  # fmt: skip
            found = race(orders, folder, seconds, self.context.seed, about=about)["the candidate"][1]
        assert found is not None
        return found

    def _converted(self, artifact: Artifact, folder: Path) -> Artifact:
        """The artifact in the target format, made as `to:` makes it."""
        from optkit.errors import StepError
        from optkit.tasks.making import reread

        for number, use in enumerate(conversion(artifact.format, self.target)):
            out, scratch = folder / str(number), folder / f"{number}-scratch"
            out.mkdir(parents=True)
            scratch.mkdir()
            own = replace(self.context, scratch=scratch, data=None, source=None, kept=None, trial=None,
                          progress=lambda text, fraction: None)  # fmt: skip
            use.run(artifact, out, use.options(), own)
            made = reread(use, artifact, out, own)
            if broken := promised(use, artifact, made):
                raise StepError(f"{use.name} of a candidate: {broken[0]}", subject="with.runtime",
                                hint="measure on another runtime")  # fmt: skip
            artifact = made
        return artifact

    def _fed(self) -> Path:
        if self.feeds is None:
            self.feeds = self.context.scratch / "trial-feeds"
            tape = Tape(self.feeds)
            for number, tensors in enumerate(itertools.islice(self._samples(), FEEDS)):
                tape.write(0, number, tensors)
        return self.feeds

    def _samples(self) -> Iterator[Tensors]:
        inputs, dims = self.context.inputs, self.context.dims
        batch = batch_dim(inputs)
        size = dims[batch].opt if batch else 1
        if self.context.data is not None:
            return self.context.data.feeds(size)
        return _made_up(inputs, dims, size)


def _made_up(inputs: tuple[TensorSpec, ...], dims: Mapping[str, Dim], size: int) -> Iterator[Tensors]:
    from optkit.data import open_dataset
    from optkit.spec.dataspec import parse_data

    return open_dataset(parse_data({"random": size * FEEDS}), Path(), inputs, dims, "random").feeds(size)


__all__ = ["Trials"]
