"""A section for each step of the HTML report: its verdict, its bounds, its outputs, and how to run it again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from optkit.reports.bounds import bound_rows, noted, problems, unbounded
from optkit.reports.html_kit import anchor, bar, command, facts, folded, link, status, table
from optkit.reports.html_layers import layers
from optkit.reports.layers import told as told_layer
from optkit.reports.markup import Safe, join, tag
from optkit.reports.pruning import HEAD, LEFT_HEAD, pruned
from optkit.reports.remedies import remedy
from optkit.reports.rows import broken, cached, cases, cost, seconds_of
from optkit.reports.sentences import deferral, replay
from optkit.reports.spelling import duration, share, size, spelt
from optkit.reports.training import trained
from optkit.reports.tuned import HEAD as TUNED_HEAD
from optkit.reports.tuned import tuned

Data = Mapping[str, Any]

_LISTED = 300  # rows of a table of every case
_LETTERS = 6000  # of a step's notes
_RANKED = 24  # groups of a budget's ranking
SPREAD = ("Output", "SQNR: worst", "5 % of samples below", "median", "mean", "Cosine: worst", "Worst sample")
_AT_A_GLANCE = ("cosine", "sqnr_db", "rel_l2", "mismatch", "top1_agreement")


def section(step: Data, report: Data) -> Safe:
    """All that the report has of a step, the most telling first."""
    check, artifact = step.get("check") or {}, step.get("artifact") or {}
    took = "cached" if cached(step) else duration(seconds_of(step))
    parts = [
        tag("h3", str(step["id"]) + " ", status(step["status"])),
        facts([
            ("pass", f"{step.get('pass')}, {step.get('fidelity')}, makes {step.get('target')}"),
            ("from", link(step["parent"]) if step.get("parent") != "source" else "the source model"),
            ("fitted on", step.get("data")),
            ("in the recipe", step.get("where") or ("put there by the plan" if step.get("implied") else None)),
            ("time", took), ("size", size(artifact["size_bytes"]) if artifact.get("size_bytes") else None),
            ("digest", artifact.get("digest")), ("delivered to", _folder(step, report)),
            ("checked", _checked(check)), ("lost", _first_upper(cost(step, report))),
        ]),
        wrong(step, report, bare=True), layers(step), _bounds(step), _noted(step), _outputs(step), budget(step),
        _pruned(step),
        tag("p", "Trained: ", learned) if (learned := trained(step)) else None,
    ]  # fmt: skip
    if step.get("options"):
        parts.append(folded("Options", tag("pre", _pretty(step["options"]))))
    drawn = {"budget", "tuned", *(("layers", "left", "zeros") if pruned(step) else ())}
    notes = {key: value for key, value in (step.get("notes") or {}).items() if key not in drawn}
    if notes:
        parts.append(folded("What the pass noted", tag("pre", _pretty(notes))))
    if replay(step):
        parts += [tag("p", "Run it again alone:", class_="dim"), command(replay(step))]
    return tag("section", *parts, id=anchor(step["id"]), class_="step")


def _folder(step: Data, report: Data) -> str | None:
    return next((item.get("path") for item in report.get("deliver", []) if item.get("step") == step["id"]), None)


def wrong(step: Data, report: Data, *, bare: bool = False) -> Safe | None:
    """Why a step did not hold and what to try, or why its check is put off; None where neither. bare: without title."""
    word, error = step["status"], step.get("error") or {}
    told: list[object] = []
    if word == "blocked":
        told = [tag("p", "Not run: it waits for ", link(step.get("blocked_by") or "?"), ", which did not succeed.")]
    elif word == "error":
        told = [
            tag("p", error.get("what", "it did not succeed")),
            tag("p", f"At {error['where']}", class_="dim") if error.get("where") else None,
            tag("p", f"Try: {error['hint']}") if error.get("hint") else None,
            folded("Details", tag("pre", error["details"]), told=True) if error.get("details") else None,
        ]
    elif word == "failed":
        lost = cost(step, report)
        told = [
            tag("ul", *(tag("li", reason) for reason in broken(step) or ["Its check does not hold."])),
            tag("p", _first_upper(lost) + ".") if lost and not bare else None,
            tag("p", _first_upper(told_layer(step)) + ".") if told_layer(step) else None,
            tag("p", f"Try: {remedy(step)}"),
        ]  # fmt: skip
    elif word == "deferred":
        told = [tag("p", _first_upper(deferral(step).replace("`", "")))]
        if not step.get("on_target"):
            told.append(tag("p", "Try: on_target: true on the step, where that is meant"))
    elif word == "waived":
        told = [tag("p", f"Its check was waived: {(step.get('check') or {}).get('waived')}")]
    if not told:
        return None
    title = None if bare else tag("h3", link(step["id"]), " ", status(word))
    return tag("div", title, *told, class_="wrong" if word in ("blocked", "error", "failed") else "note")


def _checked(check: Data) -> str:
    if not cases({"check": check}):
        return ""
    said = [
        f"against {check.get('against') or 'the source'}", f"on {check['data']}" if check.get("data") else "",
        f"precision {check['precision']}" if check.get("precision") else "",
        f"run by {check['provider']}" if check.get("provider") else "",
    ]  # fmt: skip
    return ", ".join(part for part in said if part)


def _bounds(step: Data) -> Safe | None:
    rows: list[list[object]] = []
    for row in bound_rows(step):
        one, part = row.worst, share(row.worst.used, row.worst.held)
        said = f"{part} of what the bound allows is used"
        drawn = None if one.used is None else bar(one.used, said, over=not one.held)
        rows.append([
            one.bound or row.name, one.output or "-", one.spelt, row.where, join([drawn, tag("span", part)]),
            tag("span", ("✓ " if row.held else "✗ ") + row.count, class_="good" if row.held else "bad"), one.reason,
        ])  # fmt: skip
    for case, problem in problems(step):
        rows.append(["no bound needed", problem.get("output") or "-", problem["text"], case, "-",
                     tag("span", "✗ no", class_="bad"), ""])  # fmt: skip
    if bare := unbounded(step):
        good = sum(bool(case.get("held")) for case in bare)
        held = tag("span", f"{'✓' if good == len(bare) else '✗'} {good} of {len(bare)} cases",
                   class_="good" if good == len(bare) else "bad")  # fmt: skip
        rows.append(["finite, of the right shapes", "-", "-", ", ".join(case["name"] for case in bare), "-", held,
                     "a lossy step is fitted on real samples"])  # fmt: skip
    if not rows:
        return None
    return table(("Bound", "Output", "Measured", "At its worst", "Used", "Held", "Why this bound"), rows)


def _outputs(step: Data) -> Safe | None:
    """Each output on the real samples, then every case, folded."""
    real = next((case for case in cases(step) if case.get("kind") == "samples"), None)
    if not cases(step):
        return None
    shown: list[object] = []
    if real is not None and (outputs := (real.get("source") or {}).get("outputs")):
        shown.append(tag("p", f"{real.get('samples', '?')} real samples against the source:", class_="dim"))
        shown.append(table(SPREAD, (spread(name, output) for name, output in outputs.items())))
    rows = list(_every_case(step))
    more = [tag("p", f"And {len(rows) - _LISTED} more, in report.json.")] if len(rows) > _LISTED else []
    every = ("Case", "Samples", "Output", "Worst against the source", "Worst against the parent")
    shown.append(folded(f"Every case ({len(cases(step))})", table(every, rows[:_LISTED]), *more))
    return join(shown)


def spread(name: str, output: Data) -> list[object]:
    """A row about one output on real samples, as `SPREAD` heads it."""
    noise, near = output.get("sqnr_db") or {}, output.get("cosine") or {}
    figures = [spelt("sqnr_db", noise[key]) if noise.get(key) is not None else "-" for key in
               ("worst", "p05", "p50", "mean")]  # fmt: skip
    other = output.get("mismatch") or {}
    near_text = spelt("cosine", near["worst"]).removeprefix("cosine ") if near.get("worst") is not None else (
        spelt("mismatch", other["worst"]) if other.get("worst") is not None else "-"
    )  # fmt: skip
    sample = noise.get("worst_sample", other.get("worst_sample"))
    return [name, *figures, near_text, "-" if sample is None else f"sample {sample}"]


def _every_case(step: Data) -> Iterable[list[object]]:
    for case in cases(step):
        roles = [((case.get(role) or {}).get("outputs") or {}) for role in ("source", "parent")]
        for output in {**roles[0], **roles[1]}:
            yield [case["name"], case.get("samples", "-"), output, *(_worst(role.get(output) or {}) for role in roles)]


def _worst(metrics: Data) -> str:
    found = {name: metrics[name].get("worst", metrics[name].get("value")) for name in _AT_A_GLANCE if name in metrics}
    return ", ".join(spelt(name, value) for name, value in found.items() if value is not None) or "-"


def _pruned(step: Data) -> Safe | None:
    """How much a pruning removed, of which layers, and what could not be pruned."""
    found = pruned(step)
    if found is None:
        return None
    said, rows, left = found
    parts = [tag("p", "Pruned: ", said), folded("Layers", table(HEAD, rows))]
    if left:
        parts.append(folded(f"{len(left)} layer{'s' * (len(left) != 1)} not pruned", table(LEFT_HEAD, left)))
    return join(parts)


def _noted(step: Data) -> Safe | None:
    """What the check noticed beside its bounds."""
    found = noted(step)
    return tag("p", "Noted, and no failure: ", "; ".join(found), class_="dim") if found else None


def budget(step: Data) -> Safe | None:
    """Which groups of operators stayed in higher precision to hold a step's budget, by the damage each does alone."""
    found = (step.get("notes") or {}).get("budget")
    if not found:
        return None
    ranking = found["ranking"]
    trials = f"{found['trials']} trial{'s' if found['trials'] > 1 else ''}"
    how = f"{trials} on {found['samples']} samples of {step.get('data') or 'the fitting data'}"
    kept = sum(row["kept"] for row in ranking)
    said = f"Budget {' and '.join(found['bounds'])}: " + (
        f"{kept} of {len(ranking)} groups kept in higher precision after {how}; reached there: {found['reached']}."
        if ranking else f"held with nothing kept in higher precision ({how}): {found['reached']}."
    )  # fmt: skip
    most = max((row["error"] or 0.0 for row in ranking), default=0.0) or 1.0
    rows: list[list[object]] = []
    for row in ranking[:_RANKED]:
        error = row["error"]
        value = "not finite" if error is None else f"{error:.2g}"
        part = 1.0 if error is None else error / most
        rows.append([row["group"], bar(part, f"relative error {value}", over=error is None), value,
                     "kept" if row["kept"] else "quantised"])  # fmt: skip
    ways = tuned(step)
    parts = [*([tag("p", ways[0]), table(TUNED_HEAD, ways[1])] if ways else []), tag("p", said)]
    if rows:
        parts.append(table(("Group", "", "Relative error it causes alone", "Precision"), rows))
    if len(ranking) > _RANKED:
        parts.append(tag("p", f"And {len(ranking) - _RANKED} more, in report.json.", class_="dim"))
    return join(parts)


def _pretty(data: Any) -> str:
    text = json.dumps(data, indent=1, ensure_ascii=False)
    return text if len(text) <= _LETTERS else f"{text[:_LETTERS]}\n... the rest is in report.json"


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]
