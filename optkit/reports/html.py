"""A run's report as one HTML file that opens offline: for whoever decides what ships."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from optkit.reports.html_baseline import baseline_fell, baseline_part
from optkit.reports.html_benchmark import benchmark_fell, benchmark_part
from optkit.reports.html_headline import headline
from optkit.reports.html_kit import command, facts, link
from optkit.reports.html_parts import (
    budgets_part,
    deliveries_part,
    error_part,
    gates_part,
    graph_part,
    metrics_part,
    parity_part,
    speed_part,
    trade_part,
)
from optkit.reports.html_steps import section, wrong
from optkit.reports.html_style import CSS, JS
from optkit.reports.markup import Safe, join, tag
from optkit.reports.rows import deliveries, verdict
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
    words, look = _stamp(report)
    held = tag("span", words, class_=f"verdict {look}")
    warning = tag("p", caution(report), class_="note") if caution(report) else None
    said = "; ".join(run_facts(report))
    return tag("header", held, tag("h1", verdict(report)), tag("p", f"{said[:1].upper()}{said[1:]}.", class_="dim"),
               warning, headline(report))  # fmt: skip


def _stamp(report: Data) -> tuple[str, str]:
    """What may be done with the run's deliveries in a few words, and their colour."""
    if report.get("exit_code"):
        return f"✗ do not ship: exit code {report['exit_code']}", "bad"
    left = [d.status for d in deliveries(report) if d.status != "passed"]
    if not left:
        return "✓ every delivery holds", "good"
    counts = ", ".join(f"{left.count(word)} {word}" for word in dict.fromkeys(left))
    return f"… nothing failed; {counts}", "warn"


def _parts(report: Data) -> list[tuple[str, str, Safe | None]]:
    """Title, anchor and content of each part, None where there is nothing to show."""
    steps = list(report.get("steps", []))
    failing = [s for s in steps if s["status"] in ("failed", "error") or _unmeant(s)]
    failing += [s for s in steps if s["status"] == "blocked"]
    open_ = [s for s in steps if s["status"] in ("deferred", "waived") and not _unmeant(s)]
    fell = [part for part in (baseline_fell(report), benchmark_fell(report)) if part is not None]
    return [
        ("What went wrong", "wrong", join([*fell, *(wrong(s, report) for s in failing)]) if fell or failing else None),
        ("Deliveries", "deliveries", deliveries_part(report)),
        ("Deferred and waived", "open", join(wrong(s, report) for s in open_) if open_ else None),
        ("Gates", "gates", gates_part(report)),
        ("Baseline", "baseline", baseline_part(report)),
        ("Graph", "graph", graph_part(report) if steps else None),
        ("Trade-offs", "trade", trade_part(report)),
        ("Parity", "parity", parity_part(report)),
        ("Error along the way", "error", error_part(report)),
        ("Benchmark", "benchmark", benchmark_part(report)),
        ("Speed", "speed", speed_part(steps)),
        ("Task metrics", "metrics", metrics_part(steps)),
        ("Budgets", "budgets", budgets_part(steps)),
        ("Steps", "steps", join(section(s, report) for s in steps) if steps else None),
        ("Reproduce", "reproduce", _reproduce(report)),
        ("Environment", "environment", _environment(report)),
    ]


def _unmeant(step: Data) -> bool:
    """Whether a step is deferred and the recipe does not say that it is meant: the run fails by it."""
    return bool(step["status"] == "deferred" and not step.get("on_target"))


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
