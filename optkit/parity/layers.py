"""Which layer of an artifact is to blame: its inner tensors beside those of the model that it was made from.

For each tensor that both have, on a few samples: the error that has gathered up to it; the error that the operators
just before it make by themselves, run on the other model's tensors; and, of the worst few, what that error alone does
to the outputs, put into the other model. An error that a later operator only passes on, or makes look large, is so not
held against that operator. Where a runtime cannot run on tensors that it is given, the second is estimated from
what is gathered before and after, and the third is left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.parity.bounds import EQUAL_DB
from optkit.parity.tensors import as_type, decibels, fitted, match, modules_in, names_of, rectified
from optkit.plugin import Inside, Point

if TYPE_CHECKING:
    from optkit.plugin import Tensors

    Pair = tuple[Tensors, Tensors]

SAME_DB = 90.0
"""Outputs this close to the other model's are its own: a relative error of 3e-5, which is rounding."""

CHUNK_BYTES = 128 << 20
"""Tensors of one model that are held at a time, as far as their sizes are known."""

FIRST_CHUNK, LARGEST_CHUNK = 4, 64
MOST = 256  # tensors looked at in one go; of more, those computed with weights, then some in between
TRIED = 6  # layers whose error alone is put into the other model
LISTED = 200  # layers a result keeps
HEALED_DB = 20.0  # worse than the outputs by this: what went wrong there is not in them
CANCELS_DB = 6.0  # more harm alone than all together: another error takes it back, as where two operators share a scale
JUMP_DB = 10.0
TIE_DB = 1.0


@dataclass
class Layer:
    """One tensor of the artifact beside the same of the other model; decibels are of the worst sample.

    before_db: gathered on the worst way into it. local_db: what is made between there and here. alone_db: the outputs
    of the other model with nothing but that error.
    """

    point: Point
    other: str
    main: Point
    before_db: float = EQUAL_DB
    after_db: float = EQUAL_DB
    local_db: float | None = None
    alone_db: float | None = None
    nonfinite: bool = False
    fused: bool = False
    """The runtime computes it otherwise with the operators around it than by itself: its own error is exact."""

    def to_json(self, estimated: bool, modules: Mapping[str, str]) -> dict[str, Any]:
        names = (*names_of(self.main), *names_of(self.point), self.other)
        return {
            "tensor": self.point.name, "operator": self.main.operator, "node": self.main.node,
            "module": self.main.module or next((modules[name] for name in names if modules.get(name)), ""),
            "before_db": _short(self.before_db), "after_db": _short(self.after_db), "local_db": _short(self.local_db),
            "estimated": estimated, "alone_db": _short(self.alone_db), "nonfinite": self.nonfinite,
            "fused": self.fused,
        }  # fmt: skip


def localise(
    other: Inside,
    artifact: Inside,
    feeds: Sequence[Pair],
    outputs: Sequence[str],
    *,
    seconds: float = 60.0,
    modules: Mapping[str, str] | None = None,
    say: Callable[[str, float | None], None] = lambda text, fraction: None,
) -> dict[str, Any] | None:
    """Where an artifact goes wrong beside another model; None where they have no inner tensor in common.

    feeds: the inputs of each run, as the other model and as the artifact take them. outputs: the names of both's.
    seconds: after which nothing new is begun. modules: torch modules by tensor, known from elsewhere.

    Returns {"blamed": layer or None, "layers": [layer], "worst": [index into layers], "compared", "tensors",
    "output_db", "nonfinite", "notes": [text]}; a layer has tensor, operator, node, module, before_db, after_db,
    local_db, estimated, alone_db, nonfinite, fused.
    """
    return _Search(other, artifact, feeds, outputs, seconds, say).result(modules or {})


class _Search:
    def __init__(
        self, other: Inside, artifact: Inside, feeds: Sequence[Pair], outputs: Sequence[str], seconds: float,
        say: Callable[[str, float | None], None],
    ) -> None:  # fmt: skip
        self.other, self.artifact, self.feeds, self.outputs, self.say = other, artifact, feeds, list(outputs), say
        self.deadline = time.monotonic() + seconds
        self.notes: list[str] = []
        self.expected = [other.values(self.outputs, theirs) for theirs, _ in feeds]
        self.output_db, self.nonfinite = EQUAL_DB, False
        for expected, (_, mine) in zip(self.expected, feeds, strict=True):
            got = artifact.values(self.outputs, mine)
            for name in self.outputs:
                db, bad = decibels(expected[name], got[name])
                self.output_db, self.nonfinite = min(self.output_db, db), self.nonfinite or bad
        self.points = {point.name: point for point in artifact.points}
        self.order = {name: i for i, name in enumerate(self.points)}
        self.pairs = match(other.points, artifact.points, [*feeds[0][0], *self.outputs])
        self.theirs = {point.name: point for point in other.points}
        self.unfit: set[str] = set()
        self.layers: dict[str, Layer] = {}
        self.chunk = FIRST_CHUNK

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def result(self, modules: Mapping[str, str]) -> dict[str, Any] | None:
        if not set(self.pairs.values()) - {*self.outputs, *self.feeds[0][0]}:
            return None
        modules = {**modules, **modules_in(self.theirs.values())}
        wanted = self.chosen()
        self.measure(wanted, set(wanted))
        self.leave_out(set(wanted))
        blamed = self.blame()
        if blamed is not None and len(wanted) < len(self.pairs) and not self.late:
            closer = [p.name for p in self.between(blamed.point, set(wanted)) if p.name in self.pairs]
            if closer:
                self.measure([*closer, blamed.point.name], {*wanted, *closer})
                self.leave_out({*wanted, *closer})
                blamed = self.blame()
        if blamed is not None and blamed.nonfinite and not self.late:
            self.pin(blamed)
        if self.late:
            self.notes.append(f"stopped for time: {len(self.layers)} of {len(self.pairs)} tensors compared")
        estimated = not self.artifact.replaces
        shown = _listed(sorted(self.layers.values(), key=lambda layer: self.order[layer.point.name]), blamed)
        tried = any(layer.alone_db is not None for layer in shown)
        ranked = sorted((_badness(layer, tried), i) for i, layer in enumerate(shown))
        return {
            "blamed": blamed.to_json(estimated, modules) if blamed else None,
            "layers": [layer.to_json(estimated, modules) for layer in shown],
            "worst": [i for badness, i in ranked if badness < SAME_DB][:5],
            "compared": len(self.layers), "tensors": len(self.points), "output_db": _short(self.output_db),
            "nonfinite": self.nonfinite, "notes": self.notes,
        }  # fmt: skip

    # --- which tensors

    def chosen(self) -> list[str]:
        """The tensors to look at first, in order: all, or of too many the weighty ones and some in between."""
        names = [name for name in self.points if name in self.pairs]
        if len(names) <= MOST:
            return names
        heavy = [name for name in names if self.points[name].weighs][: MOST // 2]
        step = math.ceil(len(names) / (MOST - len(heavy)))
        kept = {*heavy, *names[::step], *(name for name in self.outputs if name in self.pairs)}
        return [name for name in names if name in kept]

    def before(self, point: Point, known: set[str]) -> tuple[list[str], list[Point]]:
        """The nearest known tensors on each way back from a point, and the points passed on the way."""
        found: dict[str, None] = {}
        passed: dict[str, Point] = {}
        todo, seen = list(point.inputs), {point.name}
        while todo:
            name = todo.pop(0)
            if name in seen:
                continue
            seen.add(name)
            if (name in known and name not in self.unfit) or name not in self.points:
                found[name] = None
            else:
                passed[name] = self.points[name]
                todo += self.points[name].inputs
        return list(found), sorted(passed.values(), key=lambda p: self.order[p.name])

    def between(self, point: Point, known: set[str]) -> list[Point]:
        return self.before(point, known)[1]

    # --- measuring

    def measure(self, names: Sequence[str], known: set[str]) -> None:
        """Fill in `layers` for these tensors, in the order of execution; `known` are all that errors are told from."""
        todo = sorted(names, key=self.order.__getitem__)
        total, done = len(todo), 0
        while todo and not self.late:
            part, todo = todo[: self.chunk], todo[self.chunk :]
            held = self.measure_some(part, known)
            self.chunk = max(1, min(LARGEST_CHUNK, CHUNK_BYTES * len(part) // max(held, 1)))
            done += len(part)
            self.say("looking for the layer", done / max(total, 1))
        for name in names:
            if name in self.layers:
                self.settle(self.layers[name], known)

    def measure_some(self, names: Sequence[str], known: set[str]) -> int:
        before = {name: self.before(self.points[name], known)[0] for name in names}
        starts = list(dict.fromkeys(s for some in before.values() for s in some if s in self.points))
        mine = list(dict.fromkeys([*names, *starts]))
        theirs = list(dict.fromkeys(self.pairs[name] for name in mine))
        held = 0
        for expected_feed, feed in self.feeds:
            expected = self.other.values(theirs, expected_feed)
            got = self.whole(mine, feed)
            held = max(held, sum(t.nbytes for t in got.values()))
            given: Tensors = {}
            for name in starts:
                value = fitted(expected.get(self.pairs[name]), got[name])
                if value is not None:
                    given[name] = as_type(value, got[name].dtype)
            local = self.artifact.values(names, feed, given) if self.artifact.replaces else {}
            for name in names:
                reference = fitted(expected.get(self.pairs[name]), got[name])
                if reference is not None and self.pairs[name].startswith("module "):
                    reference = rectified(reference, got[name])
                if reference is None:
                    self.unfit.add(name)
                    self.layers.pop(name, None)
                    continue
                layer = self.layers.setdefault(name, Layer(self.points[name], self.pairs[name], self.points[name]))
                db, bad = decibels(reference, got[name])
                layer.after_db, layer.nonfinite = min(layer.after_db, db), layer.nonfinite or bad
                if local and all(np.isfinite(given[s]).all() for s in before[name] if s in given):
                    db = decibels(reference, local[name])[0]
                    layer.local_db = db if layer.local_db is None else min(layer.local_db, db)
        return held

    def whole(self, names: Sequence[str], feed: Tensors) -> Tensors:
        """Tensors of the artifact when all of it runs: cut short, its runtime would fuse other operators."""
        return self.artifact.values(list(dict.fromkeys([*names, *self.outputs])), feed)

    def settle(self, layer: Layer, known: set[str]) -> None:
        """What went into a layer, the operator that it is about, and an estimate where its own error is not known."""
        starts, passed = self.before(layer.point, known)
        layer.before_db = min((self.layers[s].after_db for s in starts if s in self.layers), default=EQUAL_DB)
        if not layer.point.weighs:
            layer.main = next((p for p in reversed(passed) if p.weighs), layer.point)
        if not self.artifact.replaces:
            made = 10 ** (-layer.after_db / 10) - 10 ** (-layer.before_db / 10)
            layer.local_db = min(EQUAL_DB, -10 * math.log10(made)) if made > 1e-30 else EQUAL_DB

    def leave_out(self, known: set[str]) -> None:
        """Take out tensors whose error is gone right behind them: they have the other's name, and another meaning.

        Such as a convolution's into which the scale of a normalisation went. What reads them is told from what is
        before them then.
        """
        readers: dict[str, list[str]] = {}
        for name, layer in self.layers.items():
            for start in self.before(layer.point, known)[0]:
                readers.setdefault(start, []).append(name)
        odd = [
            name for name, behind in readers.items() if name in self.layers and name not in self.outputs
            and all(self.layers[b].after_db > self.layers[name].after_db + HEALED_DB for b in behind)
            and self.layers[name].after_db < SAME_DB
        ]  # fmt: skip
        for name in odd:
            self.unfit.add(name)
            del self.layers[name]
        if odd and not self.late:
            again = {b for name in odd for b in readers[name] if b in self.layers}
            for name in again:
                self.layers[name].local_db = self.layers[name].alone_db = None
            self.measure(sorted(again, key=self.order.__getitem__), known)
            more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
            self.notes.append(f"left out, as their error is gone behind them: {', '.join(odd[:3])}{more}")

    def pin(self, layer: Layer) -> None:
        """The very node that makes the first NaN or infinity, among those between tensors that both models have."""
        passed = [p.name for p in self.between(layer.point, set(self.layers))]
        for _, feed in self.feeds if passed else ():
            values = self.artifact.values(passed, feed)
            for name in passed:
                if not np.isfinite(values[name]).all():
                    layer.main = self.points[name]
                    return
        if not layer.point.weighs:  # none of these: the tensor's own operator, whatever lies before it
            layer.main = layer.point

    # --- judging

    def blame(self) -> Layer | None:
        """The layer that made the artifact what it is; None where it is what the other model is, or none stands out."""
        layers = sorted(self.layers.values(), key=lambda layer: self.order[layer.point.name])
        first = next((layer for layer in layers if layer.nonfinite), None)
        if self.nonfinite and first is not None:
            return first
        if self.output_db >= SAME_DB and not self.nonfinite:
            return None
        limit = self.output_db - HEALED_DB
        for layer in layers:  # what is exact by itself, and yet the error jumps there
            jumps = layer.before_db > layer.after_db + JUMP_DB and (layer.local_db or 0.0) > layer.after_db + HEALED_DB
            if jumps and limit < layer.after_db < SAME_DB and not self.late and self.is_fused(layer):
                layer.fused = True
                return layer
        worst = sorted((la for la in layers if la.local_db is not None and la.local_db < SAME_DB and
                        la.after_db > limit), key=lambda la: la.local_db or 0.0)  # fmt: skip
        if not worst:
            return None
        if self.artifact.replaces and self.other.replaces:
            for layer in worst[:TRIED]:
                if layer.alone_db is None and not self.late:
                    layer.alone_db = self.alone(layer)
            known = [la for la in worst[:TRIED] if la.alone_db is not None]
            tried = [la for la in known if (la.alone_db or 0.0) > self.output_db - CANCELS_DB]
            if tried:
                least = min(la.alone_db or 0.0 for la in tried)
                near = [la for la in tried if (la.alone_db or 0.0) <= least + TIE_DB]
                return min(near, key=lambda la: self.order[la.point.name])
            if known:  # each does more harm alone than all together: none is what it seems
                return None
        least = worst[0].local_db or 0.0
        near = [la for la in worst if (la.local_db or 0.0) <= least + TIE_DB]
        return min(near, key=lambda la: self.order[la.point.name])

    def is_fused(self, layer: Layer) -> bool:
        """Whether a layer gives another answer inside the whole model than by itself on the very same tensors."""
        name = layer.point.name
        starts = [s for s in self.before(layer.point, set(self.layers))[0] if s in self.points]
        for _, feed in self.feeds if starts else ():
            got = self.whole([name, *starts], feed)
            own = self.artifact.values([name], feed, {start: got[start] for start in starts})[name]
            if decibels(own, got[name])[0] < layer.after_db + CANCELS_DB:
                return True
        return False

    def alone(self, layer: Layer) -> float | None:
        """The outputs of the other model when this layer's own error is put into it, and nothing else."""
        name, theirs, found = layer.point.name, layer.other, EQUAL_DB
        starts = [s for s in self.before(layer.point, set(self.layers))[0] if s in self.points]
        for (expected_feed, feed), outputs in zip(self.feeds, self.expected, strict=True):
            expected = self.other.values(list(dict.fromkeys([theirs, *(self.pairs[s] for s in starts)])), expected_feed)
            got = self.artifact.values([name, *starts], feed)
            given = {}
            for start in starts:
                value = fitted(expected[self.pairs[start]], got[start])
                if value is None:
                    return None
                given[start] = as_type(value, got[start].dtype)
            own = self.artifact.values([name], feed, given)[name]
            back = fitted(own, expected[theirs])
            if back is None:
                return None
            if theirs in outputs:
                answers = {**outputs, theirs: as_type(back, expected[theirs].dtype)}
            else:
                put = {theirs: as_type(back, expected[theirs].dtype)}
                answers = self.other.values(self.outputs, expected_feed, put)
            found = min(found, *(decibels(outputs[o], answers[o])[0] for o in self.outputs))
        return found


def _badness(layer: Layer, tried: bool = False) -> float:
    """What layers are ranked by: tried: the damage each does alone, where that was tried; else the error it makes."""
    found = layer.alone_db if tried else layer.local_db
    return EQUAL_DB if found is None else found


def _listed(layers: Sequence[Layer], blamed: Layer | None) -> list[Layer]:
    """At most LISTED layers: the worst, the blamed one, and of the rest some at equal distances."""
    if len(layers) <= LISTED:
        return list(layers)
    kept = {id(layer) for layer in sorted(layers, key=_badness)[: LISTED // 4]} | {id(blamed)}
    step = math.ceil(len(layers) / (LISTED - len(kept)))
    return [layer for i, layer in enumerate(layers) if id(layer) in kept or i % step == 0]


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
