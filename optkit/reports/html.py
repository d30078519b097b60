"""A run's report as one HTML file that opens offline: for whoever decides what ships."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from optkit.parity.scores import change_text, source_text, spell, value_text
from optkit.reports.html_charts import panels
from optkit.reports.html_graph import graph, legend, lineage
from optkit.reports.html_kit import bar, command, decibels, facts, link, status, table, whiskers
from optkit.reports.html_steps import budget, section, wrong
from optkit.reports.html_style import CSS, JS
from optkit.reports.markup import Safe, join, tag
from optkit.reports.rows import (
    EQUAL_DB,
    deliveries,
    lost_db,
    margin,
    nearest,
    parity,
    score_text,
    scores,
    size,
    speed,
    sqnr,
    verdict,
)
from optkit.reports.sentences import caution, commands, flat, replay
from optkit.reports.sentences import facts as run_facts

Data = Mapping[str, Any]


def render(report: Data) -> str:
    """One HTML page of a report's JSON, which needs nothing beside it; the same report gives the same page.

    Everything of the report goes in as text, and the page's policy lets no script run but its own.
    """
    parts = [(title, name, part) for title, name, part in _parts(report) if part is not None]
    listed = [tag("a", title, href=f"#{name}") for title, name, _ in parts]
    head = tag(
        "head", tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy()),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content=f"optkit {report.get('optkit')}"),
        tag("link", rel="icon", href="data:,"), tag("title", verdict(report)), tag("style", Safe(CSS)),
    )  # fmt: skip
    body = tag(
        "body", _header(report), tag("nav", tag("div", *listed), aria_label="Parts of the report"),
        tag("main", *(join([tag("h2", title, id=name), part]) for title, name, part in parts)),
        tag("script", Safe(JS)),
    )  # fmt: skip
    return "<!doctype html>\n" + tag("html", head, "\n", body, lang="en") + "\n"


def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256(JS.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"


def _header(report: Data) -> Safe:
    code = report.get("exit_code")
    held = tag("span", "✓ ready to ship", class_="verdict good") if code == 0 else (
        tag("span", f"✗ not ready to ship, exit code {code}", class_="verdict bad")
    )  # fmt: skip
    warning = tag("p", caution(report), class_="note") if caution(report) else None
    said = "; ".join(run_facts(report))
    return tag("header", held, tag("h1", verdict(report)), tag("p", f"{said[:1].upper()}{said[1:]}.", class_="dim"),
               warning)  # fmt: skip


def _parts(report: Data) -> list[tuple[str, str, Safe | None]]:
    """Title, anchor and content of each part, None where there is nothing to show."""
    steps = list(report.get("steps", []))
    failing = [s for s in steps if s["status"] in ("failed", "error")] + [s for s in steps if s["status"] == "blocked"]
    open_ = [s for s in steps if s["status"] in ("deferred", "waived")]
    return [
        ("What went wrong", "wrong", join(wrong(s, report) for s in failing) if failing else None),
        ("Deliveries", "deliveries", _deliveries(report)),
        ("Deferred and waived", "open", join(wrong(s, report) for s in open_) if open_ else None),
        ("Graph", "graph", _graph(report) if steps else None),
        ("Trade-offs", "trade", _trade(report)),
        ("Error along the way", "error", _error(report)),
        ("Speed", "speed", _speed(steps)),
        ("Task metrics", "metrics", _metrics(steps)),
        ("Budgets", "budgets", _budgets(steps)),
        ("Steps", "steps", join(section(s, report) for s in steps) if steps else None),
        ("Reproduce", "reproduce", _reproduce(report)),
        ("Environment", "environment", _environment(report)),
    ]


def _deliveries(report: Data) -> Safe:
    made = deliveries(report)
    steps = {step["id"]: step for step in report.get("steps", [])}
    if not made:
        return tag("p", "None.")
    largest = max((d.size_bytes or 0 for d in made), default=0) or 1
    names = list(dict.fromkeys(name for d in made for name in scores(steps.get(d.step, {}))))
    raced = any(d.speed for d in made)
    rows: list[list[object]] = []
    for d in made:
        step = steps.get(d.step, {})
        near = nearest(step)
        drawn = bar((d.size_bytes or 0) / largest, f"{size(d.size_bytes)} of {size(largest)}") if d.size_bytes else None
        rows.append([
            join([link(d.step)]), d.format, status(d.status), join([drawn, tag("span", size(d.size_bytes))]),
            parity(step) or "-", *(_brief(scores(step).get(name)) for name in names),
            f"{near.bound or near.metric}: {margin(near)}" if near else "-", *([speed(step) or "-"] if raced else []),
            d.path or "not delivered",
        ])  # fmt: skip
    head = ("Delivery", "Format", "Verdict", "Size", "Worst sample", *(name[:1].upper() + name[1:] for name in names),
            "Nearest bound", *(("Speed",) if raced else ()), "Folder")  # fmt: skip
    return table(head, rows)


def _brief(score: Data | None) -> str:
    if score is None:
        return "-"
    return "not measured" if "problem" in score else f"{value_text(score)} (source {spell(score, score['source'])})"


def _graph(report: Data) -> Safe:
    caption = tag("figcaption", legend() + " A box leads to its step.")
    return tag("figure", caption, tag("div", graph(report), class_="scroll", tabindex=0))


def _trade(report: Data) -> Safe | None:
    steps = {step["id"]: step for step in report.get("steps", [])}
    made = deliveries(report)
    drawn = panels(steps, made)
    if not drawn:
        return None
    shown = [tag("figure", tag("figcaption", title), chart) for title, chart in drawn]
    text = ("Discs joined by a line are on the Pareto front: no other delivery that holds is better in both. Squares are "
            "off it; crosses did not hold. Thin lines are confidence intervals. Latencies of different runtimes were "
            "measured one after the other, those of one runtime in turns.")  # fmt: skip
    absent = [d.step for d in made if sqnr(steps.get(d.step, {})) is None]
    left = tag("p", f"Not drawn, for want of a measurement: {', '.join(absent)}.", class_="dim") if absent else None
    return join([tag("p", text, class_="dim"), tag("div", *shown, class_="panels"), left])


def _error(report: Data) -> Safe | None:
    """The SQNR left after each step, and where it was lost."""
    ordered = lineage(report.get("steps", []))
    known = [value for step, _ in ordered if (value := sqnr(step)) is not None]
    if not known:
        return None
    top = max([value for value in known if value < EQUAL_DB] or [100.0]) * 1.05 or 1.0
    rows: list[list[object]] = []
    for step, depth in ordered:
        left, lost = sqnr(step), lost_db(step, report)
        name = join([" " * 3 * (depth - 1) + ("└ " if depth > 1 else ""), link(step["id"])])
        if left is None:
            rows.append([name, status(step["status"]), "-", "not measured", "-"])
            continue
        gone = "-" if lost is None else "nothing" if lost < 0.5 else f"all but {decibels(left)}" if (
            left + lost >= EQUAL_DB) else f"{lost:.1f} dB"  # fmt: skip
        said = f"{decibels(left)} left" + (f", {gone} lost here" if gone not in ("-", "nothing") else "")
        drawn = bar(max(0.0, left) / top, said, lost=max(0.0, (lost or 0.0) / top))
        rows.append([name, status(step["status"]), drawn, decibels(left), gone])
    text = "Signal to noise against the source model, of the worst real sample. Hatched is what the step itself lost."
    hatch = tag("svg", tag("defs", tag("pattern", tag("path", d="M0 6L6 0", class_="hatch"), id="lost", width=6, height=6,
                patternUnits="userSpaceOnUse")), width=0, height=0, aria_hidden="true")  # fmt: skip
    head = ("Step", "Verdict", "", "SQNR after it", "Lost in it")
    return join([tag("p", text, class_="dim"), hatch, table(head, rows)])


def _speed(steps: Sequence[Data]) -> Safe | None:
    raced = [(step["id"], step["speed"]) for step in steps if step.get("speed")]
    if not raced:
        return None
    top = max([2.0, *(race["ratio"]["high"] for _, race in raced)]) * 1.05
    rows: list[list[object]] = []
    for step_id, race in raced:
        r = race["ratio"]
        said = f"{r['value']:.2f} times as fast as {race['against']} ({r['low']:.2f} to {r['high']:.2f})"
        sizes = ", ".join(f"{name} {value}" for name, value in race["sizes"].items())
        word = {"faster": ("✓ faster", "good"), "slower": ("✗ slower", "bad")}.get(
            race["verdict"], ("= the same", "warn")
        )
        rows.append([
            join([link(step_id)]), tag("span", word[0], class_=word[1]),
            whiskers(r["low"], r["value"], r["high"], said, scale=(0.0, top), tick=1.0), said,
            f"{race['latency_ms']['p50']:.3g} ms against {race['parent_latency_ms']['p50']:.3g} ms",
            ", ".join(part for part in (sizes, f"{race['threads']} threads", race.get("provider") or "") if part),
        ])  # fmt: skip
    text = (
        f"Raced in turns on real samples; the scale runs from 0 to {top:.2g} times, the upright line is once as fast."
    )
    head = ("Step", "Verdict", "", "Ratio and its 95 % interval", "Median latency", "Measured with")
    return join([tag("p", text, class_="dim"), table(head, rows)])


def _metrics(steps: Sequence[Data]) -> Safe | None:
    names = dict.fromkeys(name for step in steps for name in scores(step))
    if not names:
        return None
    found: list[Safe] = []
    for name in names:
        known = [(step["id"], scores(step)[name]) for step in steps if name in scores(step)]
        measured = [score for _, score in known if "problem" not in score]
        ends = [end for s in measured for pair in _pairs(s) for end in pair]
        scale = (min(ends), max(ends)) if ends else (0.0, 1.0)
        rows: list[list[object]] = []
        for step_id, score in known:
            if "problem" in score:
                rows.append([join([link(step_id)]), "-", score_text(score), "-", "-"])
                continue
            (low, high), source = _pairs(score)
            drawn = whiskers(low, score["value"], high, score_text(score), scale=scale, tick=score["source"],
                             source=source)  # fmt: skip
            rows.append([join([link(step_id)]), drawn, value_text(score), source_text(score), change_text(score)])
        methods = dict.fromkeys(score["method"] for score in measured if score.get("method"))
        span = (
            f" The scale runs from {spell(measured[0], scale[0])} to {spell(measured[0], scale[1])}."
            if measured
            else ""
        )
        text = (f"In brackets the confidence interval ({'; '.join(methods) or 'none'}). The upright line is the source's "
                f"value, the thin line above its interval.{span}")  # fmt: skip
        head = ("Step", "", "Artifact", "Source", "Drop, or rise where lower is better")
        found += [tag("h3", name), tag("p", text, class_="dim"), table(head, rows)]
    return join(found)


def _pairs(score: Data) -> tuple[tuple[float, float], tuple[float, float]]:
    own, source = score.get("interval"), score.get("source_interval")
    return (
        (own[0], own[1]) if own else (score["value"], score["value"]),
        (source[0], source[1]) if source else (score["source"], score["source"]),
    )


def _budgets(steps: Sequence[Data]) -> Safe | None:
    found = [(step, drawn) for step in steps if (drawn := budget(step)) is not None]
    return join(join([tag("h3", link(step["id"])), drawn]) for step, drawn in found) if found else None


def _reproduce(report: Data) -> Safe:
    again = [join([tag("h3", link(s["id"])), command(replay(s))]) for s in report.get("steps", []) if replay(s)]
    parts = [command(line) for line in commands(report)]
    if again:
        parts += [tag("details", tag("summary", f"Each step alone ({len(again)})"), *again)]
    return join(parts)


def _environment(report: Data) -> Safe:
    source = report.get("source") or {}
    provenance = {
        "source": {key: source.get(key) for key in ("format", "digest", "provider")},
        "recipe": report.get("recipe") or {},
        "data": report.get("data") or {},
        "run": {"started": report.get("started"), "seconds": report.get("seconds")},
    }
    return join([
        facts(flat(report.get("environment") or {})), tag("h3", "Provenance"), facts(flat(provenance)),
    ])  # fmt: skip
