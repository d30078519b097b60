"""Reads a recipe's `metric:`, noting every mistake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from optkit.errors import did_you_mean
from optkit.spec.metricspec import KINDS, Metric, figures, metric_of, name_fault
from optkit.spec.reading import Reader, explain
from optkit.spec.yamlread import Key

_FORMS = "write `metric: accuracy`, `metric: {top_k: 5}`, or a list of such"


def read_metrics(reader: Reader) -> tuple[Metric, ...]:
    """The declared metrics that could be read, in order; a mistake is noted in `reader`."""
    value = reader.document.data.get("metric")
    if "metric" not in reader.document.data:
        return ()
    listed = isinstance(value, list)
    entries = list(value) if isinstance(value, list) else [value]
    if not entries:
        reader.problem(("metric",), "metric: names no metric", _FORMS)
    found: dict[str, Metric] = {}
    taken: dict[str, str] = {}
    for index, entry in enumerate(entries):
        key: Key = ("metric", index) if listed else ("metric",)
        metric = _metric(reader, entry, key)
        if metric is None:
            continue
        if fault := name_fault(metric.name):
            reader.problem(key, f"metric: {metric.name!r} cannot be a metric's name", fault)
        elif metric.name in found:
            reader.problem(key, f"metric: two metrics are called {metric.name!r}", "give one of them a name:")
        elif clash := next((info.name for info in figures(metric) if info.name in taken), None):
            what = f"metric: {metric.name!r} and {taken[clash]!r} both have a figure {clash!r}"
            reader.problem(key, what, "give one of them another name:")
        else:
            found[metric.name] = metric
            taken |= {info.name: metric.name for info in figures(metric)}
    return tuple(found.values())


def _metric(reader: Reader, entry: Any, key: Key) -> Metric | None:
    if isinstance(entry, str):
        if entry not in KINDS:
            reader.problem(key, f"metric: there is no metric {entry!r}", did_you_mean(entry, KINDS))
            return None
        entry = {entry: {}}
    if not isinstance(entry, Mapping):
        reader.problem(key, f"metric: should be a name or a mapping, got {entry!r:.80}", _FORMS)
        return None
    kinds = [word for word in entry if word in KINDS]
    others = [word for word in entry if word not in KINDS and word != "name"]
    for word in others:
        near = did_you_mean(word, [*KINDS, "name"])
        hint = f"options go below the metric: {kinds[0]}: {{{word}: ...}}" if kinds else near
        reader.problem((*key, word), f"metric: unknown key {word!r}", hint)
    if len(kinds) != 1:
        if kinds or not others:
            named = f"names {len(kinds)} metrics: {', '.join(kinds)}" if kinds else "names no metric"
            hint = "make it a list, one metric to an entry" if kinds else f"one of: {', '.join(KINDS)}"
            reader.problem(key, f"metric: {named}", hint)
        return None
    name = entry.get("name")
    if "name" in entry and (not isinstance(name, str) or not name):
        reader.problem((*key, "name"), f"metric: the name should be a word, got {name!r:.80}", "name: quality")
        return None
    kind = kinds[0]
    title = f"metric {name or kind}: "
    given = entry[kind]
    if given is not None and not isinstance(given, Mapping):
        given = {KINDS[kind].main: given}
    try:
        return metric_of({**({"name": name} if name else {}), kind: given}, key)
    except ValidationError as error:
        for inner, what, hint in explain(error, given or {}, title, KINDS[kind].options):
            reader.problem((*key, kind, *inner), what, hint)
    return None
