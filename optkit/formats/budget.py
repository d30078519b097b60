"""A budget: the fewest parts of a model kept in higher precision so that a bound holds.

Groups of operators that must share a precision are ranked by the damage each does when it alone is lowered; then as few
as possible of the worst are kept. Ranked on the step's fitting data; the verdict falls elsewhere, on the judging data.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.errors import DataError, StepError, UserError
from optkit.parity.bounds import METRICS, Bound, BoundError, held, judge, parse_bound
from optkit.parity.scores import part_of
from optkit.parity.tape import LIMIT_BYTES, Tape
from optkit.spec.metricspec import Metric, bound_table

if TYPE_CHECKING:
    from optkit.plugin import Context, Samples, Session, Tensors

SAMPLES = 64
"""Most samples that a trial is measured on, spread over the fitting data."""

LABELLED = 512
"""Most samples where a task metric is bounded: one answer of 64 would be 1.6 points."""

MOST_GROUPS = 64
"""More groups than this are merged with their neighbours: each costs a trial."""

SPARED = 8
"""How many of the kept groups are tried without, once a bound holds."""

DESCRIPTION = (
    'bounds, such as ["cosine >= 0.99"] or ["accuracy_drop <= 0.5%"], to be held on the fitting data against the model '
    "before: as few operators as possible stay in higher precision, those that do most damage first"
)

_RECORD = "budget.json"

Data = Mapping[str, Any]


class Unheld(StepError):
    """A budget that cannot be held, whatever is kept."""


@dataclass(frozen=True)
class Group:
    """Operators that share a precision. `name` is that of the one that matters most."""

    name: str
    members: tuple[str, ...]


def stated(texts: Sequence[str], metrics: Sequence[Metric] = ()) -> list[Bound]:
    """The bounds of a `budget:` option, in a recipe that declares these metrics. Raises UserError for one that is none.

    Planning has told a recipe's own mistakes before.
    """
    table = bound_table(metrics)
    try:
        return [parse_bound(text, table) for text in texts]
    except BoundError as error:
        raise UserError(f"budget: {error}", hint=error.hint, subject="with.budget") from error


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
    """Samples of the fitting data with the answers of the model before it is lowered, kept on disk.

    bounds: what `texts` state. Raises DataError where there are no samples, or no labels and a bound needs them;
    UserError where what a bound names is not measured of this model, or an output is in no bound.
    """

    def __init__(self, context: Context, texts: Sequence[str], reference: AbstractContextManager[Session]) -> None:
        data = context.data
        if data is None:
            raise DataError("a budget is kept by looking at data, and none was given", subject="data",
                            hint="give the step `data:`")  # fmt: skip
        self.bounds = stated(texts, context.metrics)
        named = {bound.info.task for bound in self.bounds}
        self._context, self._metrics = context, [_quicker(m, texts) for m in context.metrics if m.name in named]
        self._plain = any(b.declared is None and b.metric.startswith("accuracy") for b in self.bounds)
        if self._plain and not data.labelled:
            raise DataError("a budget on accuracy needs labels, and the data has none", subject="data",
                            hint="add `label: NAME` to the dataset")  # fmt: skip
        self._tape = Tape(context.scratch / "probe")
        self._counts: list[int] = []
        self._labels: list[Sequence[Any] | None] = []
        wanted = min(len(data), LABELLED if self._metrics or self._plain else SAMPLES)
        batch = _batch(context)
        every = max(1, len(data) // batch // max(1, wanted // batch))
        with reference as session:
            for number, (feed, labels) in enumerate(_feeds(data, batch, bool(self._metrics or self._plain))):
                if sum(self._counts) >= wanted:
                    break
                if number % every:
                    continue
                self._tape.write(0, len(self._counts), feed)
                self._tape.write(1, len(self._counts), session.infer(feed))
                if self._tape.left_bytes < 0:
                    break  # as many as the tape holds
                self._counts.append(len(next(iter(feed.values()))))
                self._labels.append(labels)
                context.progress("the model before, on samples", None)
        self.samples = sum(self._counts)
        if not self.samples and self._tape.left_bytes < 0:
            raise StepError(f"one sample and the model's answer take over {LIMIT_BYTES >> 30} GiB",
                            subject="with.budget", hint="a budget on smaller sizes: lower the dims' min")  # fmt: skip
        if not self.samples:
            raise DataError("the data has no samples", subject="data", hint="name a dataset with samples")
        self._check()

    def measure(self, opened: AbstractContextManager[Session], quick: bool = False) -> Data:
        """The metrics of a lowered model against the one before it, with the `scores` of the task metrics.

        quick: on at most `SAMPLES` samples, and without those: enough to rank by.
        """
        every = -(-self.samples // SAMPLES) if quick else 1
        with opened as session:
            return self._compared(session.infer, range(0, len(self._counts), every), scored=not quick)

    def _compared(self, answer: Callable[[Tensors], Tensors] | None, numbers: Sequence[int], scored: bool) -> Data:
        """The same of any answers to some feeds; None: the model before, beside itself."""
        from optkit.data.batch import stack_labels
        from optkit.parity.metrics import Comparison
        from optkit.scoring.measure import Scoring

        compared = Comparison()
        scoring = Scoring(self._metrics if scored else (), self._context.base, self._context.seed)
        for number in numbers:
            feed, before = self._tape.read(0, number), self._tape.read(1, number)
            if feed is None or before is None:
                raise StepError("the samples to keep the budget by cannot be read back", hint="look for space on the "
                                "disk of the scratch folder (TMPDIR)")  # fmt: skip
            count, labels = self._counts[number], self._labels[number]
            now = before if answer is None else answer(feed)
            compared.add(before, now, count, stack_labels(labels) if self._plain else None)
            if all(name in now for name in before):
                scoring.add(feed, labels, before, now, count)
        return {**compared.result(), "scores": scoring.result(self._context.progress)}

    def _check(self) -> None:
        """Whether each bound is about something, and each output in a bound: the search would never end well."""
        try:
            result = self._compared(None, range(len(self._counts)), scored=True)
        except UserError as error:  # of the labels or the metric: planning has not seen the samples
            raise UserError(f"the budget cannot be judged on the fitting data: {error.what}", hint=error.hint,
                            subject="with.budget", details=error.details) from error  # fmt: skip
        if result["problems"]:
            raise UserError(f"the budget cannot be judged on the fitting data: {reached(result, self.bounds)}",
                            hint="mend the samples or their labels", subject="with.budget")  # fmt: skip
        for verdict in judge(result, self.bounds, result["scores"]):
            if verdict.measured is not None or (verdict.bound and verdict.bound.info.task):
                continue
            have = result["outputs"].get(verdict.output, {}) if verdict.output else {}
            other = next(iter(have), None) if verdict.bound is None else None
            measured = dict.fromkeys(key for found in result["outputs"].values() for key in found)
            hint = f"bound one of: {', '.join(measured)}"
            hint = f"bound it too: {verdict.output}.{_SUCH[other]}" if other in _SUCH else hint
            raise UserError(f"the budget cannot be judged: {verdict.text}", hint=hint, subject="with.budget")


_SUCH = {"rel_l2": "cosine >= 0.99", "mismatch": "mismatch <= 1%"}


def _batch(context: Context) -> int:
    """The least number of samples that the model takes at once."""
    first = {spec.name: spec.shape[0] for spec in context.inputs if spec.shape}
    fixed = [size for size in first.values() if isinstance(size, int)]
    least = [context.dims[d].min for d in first.values() if isinstance(d, str) and d in context.dims]
    return max([1, *fixed[:1], *least[:1]])


def _feeds(data: Samples, batch: int, labelled: bool) -> Iterator[tuple[Tensors, Sequence[Any] | None]]:
    """Feeds of `batch` samples, with their labels where these are wanted and there are any."""
    if not labelled:
        yield from ((feed, None) for feed in data.feeds(batch))
        return
    several = iter(data.iter_labelled())
    while part := list(islice(several, batch)):
        part = [part[i % len(part)] for i in range(batch)]  # a fixed batch is filled up, as `feeds` does it
        yield data.stack([sample for sample, _ in part]), [label for _, label in part] if data.labelled else None


def _quicker(metric: Metric, texts: Sequence[str]) -> Metric:
    """A metric whose intervals take as little time as can be, where no bound is on them."""
    if any("_lower" in text or "_upper" in text for text in texts):
        return metric
    return replace(metric, options=metric.options.model_copy(update={"resamples": 100}))


def emptied(context: Context, name: str = "trial") -> Path:
    """An empty folder for a trial, in place of the last one's of that name."""
    folder = context.scratch / name
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


def holds(result: Data, bounds: Sequence[Bound]) -> bool:
    """Whether a trial holds the bounds."""
    scores = result.get("scores")
    return held(result, judge(result, bounds, scores), scores)


def keep(
    groups: Sequence[Group],
    bounds: Sequence[Bound],
    lower: Callable[[Sequence[Group], bool], Data],
    context: Context,
) -> tuple[Group, ...]:
    """The groups to keep in higher precision; () where the bound holds without.

    lower(groups, quick) lowers just these and measures: quick for a trial that only ranks. What was found is written to
    the scratch folder, for `found`. Raises Unheld where not even the least harmful group can be lowered, with the best
    that was reached.
    """
    trials = 0

    def tried(chosen: Sequence[Group], quick: bool = False) -> Data:
        nonlocal trials
        trials += 1
        return lower(chosen, quick)

    result = tried(groups)
    ranked: list[tuple[float, Group]] = []
    kept: list[Group] = []
    if not holds(result, bounds):
        for number, group in enumerate(groups):
            context.progress(f"ranking: {group.name}", number / len(groups))
            ranked.append((damage(tried([group], quick=True)), group))
        ranked.sort(key=lambda pair: -pair[0])
        order = [group for _, group in ranked]
        spared = 0
        low, high, best = 0, len(order), None  # `low` kept is too few; all kept would lower nothing
        while high - low > 1:
            middle = (low + high) // 2
            context.progress(f"keeping {middle} of {len(order)} groups", None)
            found = tried(order[middle:])
            if holds(found, bounds):
                high, result, best = middle, found, found
            else:
                low = middle
                if best is None and damage(found) <= damage(result):
                    result, spared = found, middle
        if best is None:
            worst = f"{order[0].name!r} does most of the damage" if order else "there is nothing to keep"
            finest = _finest(result, bounds)
            raise Unheld(
                f"the budget cannot be held: {' and '.join(map(str, bounds))}; "
                f"best reached, with {spared} of {len(order)} groups kept, on {result['samples']} samples: "
                f"{reached(result, bounds)}",
                subject="with.budget", details=_drawn(ranked, set()),
                hint=f"{finest}a looser budget, or another method ({worst})",
            )  # fmt: skip
        kept = order[:high]
        for group in list(reversed(kept))[:SPARED]:
            without = [g for g in kept if g != group]
            found = tried([g for g in order if g not in without])
            if holds(found, bounds):
                kept, result = without, found
    record = {
        "bounds": [str(bound) for bound in bounds], "trials": trials, "samples": result["samples"],
        "reached": reached(result, bounds), "groups": len(groups), "kept": list(members(kept)),
        "ranking": [{"group": g.name, "operators": len(g.members), "error": d if d < 1e30 else None, "kept": g in kept}
                    for d, g in ranked],
    }  # fmt: skip
    (context.scratch / _RECORD).write_text(json.dumps(record), encoding="utf-8")
    return tuple(kept)


def found(context: Context) -> dict[str, Any] | None:
    """What `keep` found in this step, JSON data for the notes; None where there was no budget."""
    path: Path = context.scratch / _RECORD
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def reached(result: Data, bounds: Sequence[Bound]) -> str:
    """A trial in words, what is bounded first: "logits cosine 0.9871, sqnr_db 16.1", of the worst sample."""
    if result["problems"]:
        return str(result["problems"][0]["text"])
    texts = []
    for bound in bounds:
        if not bound.info.task:
            continue
        score = result["scores"].get(bound.info.task, {})
        value = part_of(score, bound.info.part) if "problem" not in score else None
        texts.append(f"{bound.metric} {'has no value' if value is None else _figure(value, bound.info.unit)}")
    for name, metrics in result["outputs"].items():
        own = [b.metric for b in bounds if not b.info.task and b.output in (None, name)]
        shown = [key for key in dict.fromkeys([*own, "cosine", "sqnr_db", "mismatch", "top1_agreement"])
                 if key in metrics]  # fmt: skip
        parts = [f"{key} {_figure(metrics[key].get('worst', metrics[key].get('value')), METRICS[key].unit)}"
                 for key in shown]  # fmt: skip
        texts.append(f"{name} {', '.join(parts)}")
    return "; ".join(texts)


def _finest(result: Data, bounds: Sequence[Bound]) -> str:
    """What to say first where the data has too few samples to tell a bound from nothing at all; "" where it has not."""
    share = 1 / max(result["samples"], 1)
    for bound in bounds:
        counted = bound.info.unit == "fraction" and bound.op == "<=" and (bound.info.task or bound.metric != "mismatch")
        if counted and 0 < bound.value < share:
            return f"more samples (of {result['samples']}, one is {share:.2%}, beyond {bound.value:.2%}), "
    return ""


def _figure(value: float, unit: str) -> str:
    return f"{value:.2%}" if unit == "fraction" else f"{value:.5g}"


def _drawn(ranked: Sequence[tuple[float, Group]], kept: set[Group]) -> str:
    """The ranking as lines with bars, worst first."""
    most = max((d for d, _ in ranked if d < float("inf")), default=0.0) or 1.0
    lines = []
    for value, group in ranked[:20]:
        bar = "#" * max(1, round(30 * min(value, most) / most))
        lines.append(f"{bar:<30}  {value:.3g}  {group.name}{'  (kept)' if group in kept else ''}")
    return "\n".join([*lines, *([f"... and {len(ranked) - 20} more"] if len(ranked) > 20 else [])])
