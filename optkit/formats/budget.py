"""A budget: the fewest parts of a model kept in higher precision so that a bound holds.

Groups of operators that must share a precision are ranked by the damage each does when it alone is lowered; then as few
as possible of the worst are kept. Ranked on the step's fitting data; the verdict falls elsewhere, on the judging data.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.errors import DataError, StepError
from optkit.parity.bounds import METRICS, Bound, BoundError, held, judge, parse_bound
from optkit.parity.tape import Tape

if TYPE_CHECKING:
    from optkit.plugin import Context, Session, Tensors

SAMPLES = 64
"""Most samples that a trial is measured on, spread over the fitting data."""

MOST_GROUPS = 64
"""More groups than this are merged with their neighbours: each costs a trial."""

SPARED = 8
"""How many of the kept groups are tried without, once a bound holds."""

DESCRIPTION = (
    'bounds, such as ["cosine >= 0.99"], to be held on the fitting data against the model before: as few operators as '
    "possible stay in higher precision, those that do most damage first"
)

_RECORD = "budget.json"

Data = Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """Operators that share a precision. `name` is that of the one that matters most."""

    name: str
    members: tuple[str, ...]


def stated(texts: Sequence[str]) -> list[Bound]:
    """The bounds of a `budget:` option. Raises ValueError for one that is none, or that needs labels."""
    found = []
    for text in texts:
        try:
            bound = parse_bound(text)
        except BoundError as error:
            raise ValueError(f"{error}; {error.hint}") from None
        if bound.metric.startswith("accuracy"):
            usable = ", ".join(name for name in METRICS if not name.startswith("accuracy"))
            raise ValueError(f"{text!r}: a budget is kept on samples without labels; use one of {usable}")
        found.append(bound)
    return found


def grouped(operators: Sequence[tuple[str, bool, str]]) -> list[Group]:
    """Groups of operators in the order they run, each (name, heavy, key).

    Heavy ones with the same key, such as their input, share a group; any other belongs to the heavy one before it. At
    most `MOST_GROUPS`.
    """
    members: dict[str, list[str]] = {}
    heads: dict[str, str] = {}
    last = ""
    for name, heavy, key in operators:
        if heavy:
            last = key
            heads.setdefault(key, name)
        members.setdefault(last, []).append(name)
    if "" in members and len(members) > 1:  # what comes before the first heavy one
        first = next(key for key in members if key)
        members[first] = [*members.pop(""), *members[first]]
    groups = [Group(heads.get(key, names[0]), tuple(names)) for key, names in members.items()]
    size = -(-len(groups) // MOST_GROUPS)
    parts = (groups[start : start + size] for start in range(0, len(groups), max(size, 1)))
    return [Group(part[0].name, tuple(m for group in part for m in group.members)) for part in parts]


class Probe:
    """Samples of the fitting data with the answers of the model before it is lowered, kept on disk."""

    def __init__(self, context: Context, reference: AbstractContextManager[Session]) -> None:
        data = context.data
        if data is None:
            raise DataError("a budget is kept by looking at data, and none was given", subject="data",
                            hint="give the step `data:`")  # fmt: skip
        self._tape = Tape(context.scratch / "probe")
        self._counts: list[int] = []
        wanted = min(len(data), SAMPLES)
        first = {spec.name: spec.shape[0] for spec in context.inputs if spec.shape}
        fixed = [size for size in first.values() if isinstance(size, int)]
        least = [context.dims[d].min for d in first.values() if isinstance(d, str) and d in context.dims]
        batch = max([1, *fixed[:1], *least[:1]])
        every = max(1, len(data) // batch // max(1, wanted // batch))
        with reference as session:
            for number, feed in enumerate(data.feeds(batch)):
                if number % every or sum(self._counts) >= wanted:
                    continue
                self._tape.write(0, len(self._counts), feed)
                self._tape.write(1, len(self._counts), session.infer(feed))
                self._counts.append(len(next(iter(feed.values()))))
                context.progress("the model before, on samples", None)
        self.samples = sum(self._counts)
        if not self.samples:
            raise DataError("the data has no samples", subject="data", hint="name a dataset with samples")

    def _feeds(self) -> Iterator[tuple[Tensors, Tensors, int]]:
        for number, count in enumerate(self._counts):
            feed, answer = self._tape.read(0, number), self._tape.read(1, number)
            if feed is None or answer is None:
                raise StepError("the samples to keep the budget by are too big for the disk's scratch folder",
                                hint="a smaller fitting set")  # fmt: skip
            yield feed, answer, count

    def measure(self, opened: AbstractContextManager[Session]) -> Data:
        """The metrics of a lowered model against the one before it."""
        from optkit.parity.metrics import Comparison

        compared = Comparison()
        with opened as session:
            for feed, answer, count in self._feeds():
                compared.add(answer, session.infer(feed), count)
        return compared.result()


def emptied(context: Context) -> Path:
    """An empty folder for a trial, in place of the last one's."""
    folder = context.scratch / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def others(groups: Sequence[Group], chosen: Sequence[Group]) -> tuple[str, ...]:
    """The operators of the groups that are not chosen."""
    lowered = set(chosen)
    return tuple(member for group in groups if group not in lowered for member in group.members)


def members(groups: Sequence[Group]) -> tuple[str, ...]:
    """The operators of groups."""
    return tuple(member for group in groups for member in group.members)


def damage(result: Data) -> float:
    """How far off a trial is: the mean relative L2 error, or share of unequal elements, of its worst output."""
    if result["problems"]:
        return float("inf")
    found = [(m.get("rel_l2") or m.get("mismatch") or {}).get("mean", float("inf")) for m in result["outputs"].values()]
    return max(found, default=float("inf"))


def keep(
    groups: Sequence[Group],
    bounds: Sequence[Bound],
    lower: Callable[[Sequence[Group], bool], Data],
    context: Context,
) -> tuple[Group, ...]:
    """The groups to keep in higher precision; () where the bound holds without.

    lower(groups, quick) lowers just these and measures: quick for a trial that only ranks. What was found is written to
    the scratch folder, for `applied` and `notes`. Raises StepError where not even the least harmful group can be
    lowered, with the best that was reached.
    """
    trials = 0

    def tried(chosen: Sequence[Group], quick: bool = False) -> Data:
        nonlocal trials
        trials += 1
        return lower(chosen, quick)

    def holds(result: Data) -> bool:
        return held(result, judge(result, bounds))

    result = tried(groups)
    ranked: list[tuple[float, Group]] = []
    kept: list[Group] = []
    if not holds(result):
        for number, group in enumerate(groups):
            context.progress(f"ranking: {group.name}", number / len(groups))
            ranked.append((damage(tried([group], quick=True)), group))
        ranked.sort(key=lambda pair: -pair[0])
        order = [group for _, group in ranked]
        low, high, best = 0, len(order), None  # `low` kept is too few; all kept would lower nothing
        while high - low > 1:
            middle = (low + high) // 2
            context.progress(f"keeping {middle} of {len(order)} groups", None)
            found = tried(order[middle:])
            if holds(found):
                high, result, best = middle, found, found
            else:
                low = middle
                result = found if best is None and damage(found) <= damage(result) else result
        if best is None:
            worst = f"{order[0].name!r} does most" if order else "there is nothing to keep"
            raise StepError(
                f"the budget cannot be held: {' and '.join(map(str, bounds))}; "
                f"best reached, with {len(order) - 1} of {len(order)} groups kept: {_reached(result)}",
                subject="with.budget", details=_drawn(ranked, set()),
                hint=f"a looser budget, or another method ({worst} of the damage)",
            )  # fmt: skip
        kept = order[:high]
        for group in list(reversed(kept))[:SPARED]:
            without = [g for g in kept if g != group]
            found = tried([g for g in order if g not in without])
            if holds(found):
                kept, result = without, found
    record = {
        "bounds": [str(bound) for bound in bounds], "trials": trials, "samples": result["samples"],
        "reached": _reached(result), "groups": len(groups), "kept": list(members(kept)),
        "ranking": [{"group": g.name, "operators": len(g.members), "error": d if d < 1e30 else None, "kept": g in kept}
                    for d, g in ranked],
    }  # fmt: skip
    (context.scratch / _RECORD).write_text(json.dumps(record), encoding="utf-8")
    return tuple(kept)


def found(context: Context) -> dict[str, Any] | None:
    """What `keep` found in this step, JSON data for the notes; None where there was no budget."""
    path: Path = context.scratch / _RECORD
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _reached(result: Data) -> str:
    """The worst sample of a trial in words: "logits cosine 0.9871, 16.1 dB"."""
    if result["problems"]:
        return str(result["problems"][0]["text"])
    texts = []
    for name, metrics in result["outputs"].items():
        parts = [f"{key} {metrics[key]['worst']:.5g}" for key in ("cosine", "sqnr_db", "mismatch") if key in metrics]
        parts += [f"{key} {metrics[key]['value']:.2%}" for key in ("top1_agreement",) if key in metrics]
        texts.append(f"{name} {', '.join(parts)}")
    return "; ".join(texts)


def _drawn(ranked: Sequence[tuple[float, Group]], kept: set[Group]) -> str:
    """The ranking as lines with bars, worst first."""
    most = max((d for d, _ in ranked if d < float("inf")), default=0.0) or 1.0
    lines = []
    for value, group in ranked[:20]:
        bar = "#" * max(1, round(30 * min(value, most) / most))
        lines.append(f"{bar:<30}  {value:.3g}  {group.name}{'  (kept)' if group in kept else ''}")
    return "\n".join([*lines, *([f"... and {len(ranked) - 20} more"] if len(ranked) > 20 else [])])
