"""The parts of the HTML report that look across all steps, from the deliveries to the budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optkit.parity.bounds import EQUAL_DB
from optkit.parity.scores import change_text, source_text, spell, value_text
from optkit.reports.bounds import margin, nearest
from optkit.reports.html_charts import panels, timed_by
from optkit.reports.html_graph import graph, legend, lineage
from optkit.reports.html_kit import bar, decibels, histogram, link, status, table, whiskers
from optkit.reports.html_steps import SPREAD, budget, spread
from optkit.reports.markup import Safe, join, tag
from optkit.reports.rows import cases, deliveries, gates, lost_db, parity, score_text, scores, speed, sqnr
from optkit.reports.spelling import duration, size

Data = Mapping[str, Any]


def deliveries_part(report: Data) -> Safe:
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
            _two(*(parity(step) or "-").split(", ", 1)), *(_brief(scores(step).get(name)) for name in names),
            _two(margin(near), near.bound or near.metric) if near else "-",
            *([speed(step) or "-"] if raced else []), "cached" if d.cached else duration(d.seconds),
        ])  # fmt: skip
    head = ("Delivery", "Format", "Verdict", "Size", "Worst sample", *(name[:1].upper() + name[1:] for name in names),
            "Nearest bound", *(("Speed",) if raced else ()), "Time")  # fmt: skip
    return table(head, rows)


def _brief(score: Data | None) -> str | Safe:
    """A metric of a delivery: its value over the source's; the interval is in the table of metrics."""
    if score is None:
        return "-"
    if "problem" in score:
        return "not measured"
    return _two(spell(score, score["value"]), f"source {spell(score, score['source'])}")


def _two(first: str, second: str = "") -> Safe:
    """A cell of two lines, the second one smaller."""
    return tag("span", first, tag("span", second, class_="under") if second else None)


def graph_part(report: Data) -> Safe:
    caption = tag("figcaption", legend() + " A box leads to its step.")
    return tag("figure", caption, tag("div", graph(report), class_="scroll", tabindex=0))


def trade_part(report: Data) -> Safe | None:
    steps = {step["id"]: step for step in report.get("steps", [])}
    made = deliveries(report)
    drawn = panels(steps, made, report.get("benchmark"))
    if not drawn:
        return None
    shown = [tag("figure", tag("figcaption", title), chart) for title, chart in drawn]
    text = ("Discs joined by a line are on the Pareto front: no other delivery that holds is better in both. "
            "Squares are off it; crosses did not hold. Thin lines are confidence intervals. "
            f"{timed_by(report)}")  # fmt: skip
    absent = [d.step for d in made if sqnr(steps.get(d.step, {})) is None]
    left = tag("p", f"Not drawn, for want of a measurement: {', '.join(absent)}.", class_="dim") if absent else None
    return join([tag("p", text, class_="dim"), tag("div", *shown, class_="panels"), left])


def gates_part(report: Data) -> Safe | None:
    """Each gate with what was measured, and how much of what it allows that takes."""
    found = gates(report)
    if not found:
        return None
    words = {"held": ("✓ held", "good"), "failed": ("✗ failed", "bad"), "deferred": ("… deferred", "warn")}
    rows: list[list[object]] = []
    for step_id, gate in found:
        word, look = words.get(gate["status"], (f"– {gate['status']}", "warn"))
        taken = _taken(gate)
        drawn = None if taken is None else bar(taken, f"{taken:.0%} of the limit", over=gate["status"] == "failed")
        share = "" if taken is None else f"{taken:.0%}"
        rows.append([
            join([link(step_id)]), gate["gate"], tag("span", word, class_=f"status {look}"),
            join([drawn, tag("span", share)]) if share else "-", gate["text"],
            "all deliveries" if gate["scope"] == "recipe" else "this step",
        ])  # fmt: skip
    text = "The bar ends at the limit: its share for what must stay below, the limit's share for what must reach it."
    return join([tag("p", text, class_="dim"), table(("Delivery", "Gate", "Verdict", "Of the limit", "Measured",
                                                      "On"), rows)])  # fmt: skip


def _taken(gate: Data) -> float | None:
    """How near a gate is: 1 at its limit, more beyond it; None where nothing was measured, or it has no share."""
    measured, limit = gate.get("measured"), gate.get("limit")
    if measured is None or limit is None:
        return None
    over, under = (limit, measured) if ">=" in gate["gate"] or "≥" in gate["gate"] else (measured, limit)
    return max(0.0, over / under) if under > 0 else None


def parity_part(report: Data) -> Safe | None:
    """Each output of each delivery on the real samples, with the sample it is worst on."""
    steps = {step["id"]: step for step in report.get("steps", [])}
    found: list[tuple[str, str, Data]] = []
    for d in deliveries(report):
        real = next((case for case in cases(steps.get(d.step, {})) if case.get("kind") == "samples"), {})
        found += [(d.step, *output) for output in ((real.get("source") or {}).get("outputs") or {}).items()]
    if not found:
        return None
    drawn = {
        (step, name): bins for step, name, output in found if (bins := (output.get("sqnr_db") or {}).get("histogram"))
    }
    ends = [end for bins in drawn.values() if any(bins["counts"]) for end in (bins["low"], bins["high"])]
    scale = (min(ends), max(ends)) if ends else (0.0, 1.0)
    rows = [
        [join([link(step)]), *spread(name, output),
         *([_distribution(drawn.get((step, name)), output, scale)] if drawn else [])]
        for step, name, output in found
    ]  # fmt: skip
    text = "Each output on the real samples against the source model. The worst sample is counted from 0 in the data."
    if ends:
        text += (f" The distribution is of the samples' SQNR, from {decibels(scale[0])} to {decibels(scale[1])} in "
                 "every row; the ring is the worst sample.")  # fmt: skip
    head = ("Delivery", *SPREAD, *(("Distribution",) if drawn else ()))
    return join([tag("p", text, class_="dim"), table(head, rows)])


def _distribution(bins: Data | None, output: Data, scale: tuple[float, float]) -> Safe | str:
    """The samples' SQNR as columns; in words where all are without any error."""
    if bins is None:
        return "-"
    perfect = f"{bins['perfect']} samples without any error"
    if not any(bins["counts"]):
        return perfect
    said = f"SQNR from {decibels(bins['low'])} to {decibels(bins['high'])}, median {decibels(output['sqnr_db']['p50'])}"
    drawn = histogram(bins, output["sqnr_db"]["worst"], said, scale=scale)
    return join([drawn, tag("span", f"and {perfect}", class_="under") if bins["perfect"] else None])


def error_part(report: Data) -> Safe | None:
    """The SQNR left after each step, and where it was lost."""
    ordered = lineage(report.get("steps", []))
    known = [value for step, _ in ordered if (value := sqnr(step)) is not None]
    if not known:
        return None
    top = max([value for value in known if value < EQUAL_DB] or [100.0]) * 1.05 or 1.0
    rows: list[list[object]] = []
    for step, depth in ordered:
        left, lost = sqnr(step), lost_db(step, report)
        name = tag(
            "span", "└ " if depth > 1 else None, link(step["id"]), style=f"padding-left:{1.3 * (depth - 1):.1f}em"
        )
        if left is None:
            rows.append([name, status(step["status"]), "-", "not measured", "-"])
            continue
        gone = "-" if lost is None else "nothing" if lost < 0.5 else f"all but {decibels(left)}" if (
            left + lost >= EQUAL_DB) else f"{lost:.1f} dB"  # fmt: skip
        said = f"{decibels(left)} left" + (f", {gone} lost here" if gone not in ("-", "nothing") else "")
        drawn = bar(max(0.0, left) / top, said, lost=max(0.0, (lost or 0.0) / top))
        rows.append([name, status(step["status"]), drawn, decibels(left), gone])
    text = "Signal to noise against the source model, of the worst real sample. Hatched is what the step itself lost."
    stripes = tag("path", d="M0 6L6 0", class_="hatch")
    pattern = tag("pattern", stripes, id="lost", width=6, height=6, patternUnits="userSpaceOnUse")
    hatch = tag("svg", tag("defs", pattern), width=0, height=0, aria_hidden="true")
    head = ("Step", "Verdict", "", "SQNR after it", "Lost in it")
    return join([tag("p", text, class_="dim"), hatch, table(head, rows)])


def speed_part(steps: Sequence[Data]) -> Safe | None:
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
            join([link(step_id)]), tag("span", word[0], class_=f"status {word[1]}"),
            whiskers(r["low"], r["value"], r["high"], said, scale=(0.0, top), tick=1.0), said,
            f"{race['latency_ms']['p50']:.3g} ms against {race['parent_latency_ms']['p50']:.3g} ms",
            ", ".join(part for part in (sizes, f"{race['threads']} threads", race.get("provider") or "") if part),
        ])  # fmt: skip
    text = (
        f"Raced in turns on real samples; the scale runs from 0 to {top:.2g} times, the upright line is once as fast."
    )
    head = ("Step", "Verdict", "", "Ratio and its 95 % interval", "Median latency", "Measured with")
    return join([tag("p", text, class_="dim"), table(head, rows)])


def metrics_part(steps: Sequence[Data]) -> Safe | None:
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
        text = (f"In brackets the confidence interval ({'; '.join(methods) or 'none'}). The upright line is "
                f"the source's value, the thin line above its interval.{span}")  # fmt: skip
        head = ("Step", "", "Artifact", "Source", "Drop, or rise where lower is better")
        found += [tag("h3", name), tag("p", text, class_="dim"), table(head, rows)]
    return join(found)


def _pairs(score: Data) -> tuple[tuple[float, float], tuple[float, float]]:
    own, source = score.get("interval"), score.get("source_interval")
    return (
        (own[0], own[1]) if own else (score["value"], score["value"]),
        (source[0], source[1]) if source else (score["source"], score["source"]),
    )


def budgets_part(steps: Sequence[Data]) -> Safe | None:
    found = [(step, drawn) for step in steps if (drawn := budget(step)) is not None]
    return join(join([tag("h3", link(step["id"])), drawn]) for step, drawn in found) if found else None
