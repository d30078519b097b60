"""The HTML report's part about the benchmark: latency, throughput, start, memory and size of what was run in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optkit.reports.html_kit import WIDE, chart, link, number, table, whiskers
from optkit.reports.markup import Safe, join, tag
from optkit.reports.rows import benchmark_parity, benchmark_text, heat_name
from optkit.reports.spelling import duration, size

Data = Mapping[str, Any]

_WORDS = {"faster": ("✓ faster", "good"), "slower": ("✗ slower", "bad"), "same": ("= the same", "warn")}


def benchmark_fell(report: Data) -> Safe | None:
    """Why a benchmark that the recipe asks for was not measured; None where it was, or none is asked for."""
    error = (report.get("benchmark") or {}).get("error")
    if not error:
        return None
    title = tag("h3", tag("a", "benchmark", href="#benchmark"), " ", tag("span", "! error", class_="status bad"))
    return tag("div", title, tag("p", error["what"]), tag("p", f"Try: {error['hint']}") if error.get("hint") else None,
               class_="wrong")  # fmt: skip


def benchmark_part(report: Data) -> Safe | None:
    """A table for each batch and number of threads, in which all latencies have one scale, and so have all speeds."""
    found = report.get("benchmark")
    if not found:
        return None
    made = {str(step["id"]) for step in report.get("steps", [])}
    parts = [tag("p", _how(found["against"]), class_="dim")] if found["rows"] else []
    heats: dict[str, list[Data]] = {}
    for row in found["rows"]:
        heats.setdefault(heat_name(row), []).append(row)
    for title, rows in heats.items():
        parts += [tag("h3", title), _table(rows, found["against"], made)]
    if found["error"]:
        parts.append(tag("p", "Not measured: ", found["error"]["what"], class_="note"))
    if found["notes"]:
        parts.append(tag("ul", *(tag("li", note) for note in found["notes"])))
    return join(parts)


def _how(against: str) -> str:
    return (
        "Each ran in processes of its own, in turns with the others, on the same real samples. The bar ends at the "
        "median latency, the line behind it at the 99th percentile, or at the edge where that is beyond it, with a "
        f"mark at the 90th. Speed is the ratio to {against} with its 95 % interval; the upright line is once as fast. "
        "Start is the import of the runtime in a fresh process, opening and the first inference. Memory is all that "
        "the process had resident."
    )


def _table(rows: Sequence[Data], against: str, made: set[str]) -> Safe:
    longest = max(max(1.5 * row["latency_ms"]["p50"], row["latency_ms"]["p90"]) for row in rows)
    fastest = max([1.0, *(row["ratio"]["high"] for row in rows if row["ratio"])]) * 1.05
    settings = any(row["parity"] for row in rows)
    shown: list[list[object]] = []
    for row in rows:
        p50, p90, p99 = (row["latency_ms"][name] for name in ("p50", "p90", "p99"))
        figures = (
            duration(row["open_seconds"] + row["first_seconds"]),
            size(row["peak_bytes"]),
            size(row["size_bytes"]),
        )
        shown.append([
            _named(row, made),
            join([latency(p50, p90, p99, longest), tag("span", f"{p50:.3g} / {p90:.3g} / {p99:.3g} ms")]),
            f"{row['samples_per_second']:.4g}", _speed(row, fastest),
            *(tag("span", text, class_="whole") for text in figures),
            *([_answers(row)] if settings else []),
        ])  # fmt: skip
    head = ("Artifact", "Latency: p50 / p90 / p99", "Samples/s", f"Speed over {against}", "Start", "Memory", "Size",
            *(("Answers",) if settings else ()))  # fmt: skip
    return table(head, shown)


def _named(row: Data, made: set[str]) -> Safe:
    """An artifact's name, then its settings, where they may be broken, and what ran it."""
    step, _, settings = str(row["artifact"]).partition(" [")
    parts = (part for word in settings.removesuffix("]").split("_") for part in ("_", tag("wbr"), word))
    told = join(["with ", *list(parts)[2:]]) if settings else None
    provider = str(row["provider"] or "").replace("ExecutionProvider", " (onnxruntime)")
    return tag("span", link(step) if step in made else step, *(tag("span", text, class_="under")
               for text in (told, provider) if text))  # fmt: skip


def _speed(row: Data, fastest: float) -> Safe:
    """How many times as fast it is, drawn, and why that is not to be trusted where it was not steady."""
    r, unsteady = row["ratio"], tag("span", row["unsteady"], class_="under") if row["unsteady"] else None
    if r is None:
        return join([tag("span", "1"), unsteady])
    said, (word, look) = benchmark_text(row), _WORDS[row["verdict"]]
    drawn = whiskers(r["low"], r["value"], r["high"], said, scale=(0.0, fastest), tick=1.0)
    return join([drawn, tag("span", said, " "), tag("span", word, class_=f"status {look}"), unsteady])


def _answers(row: Data) -> Safe:
    """Of an artifact with settings, how far its answers are from those without; else nothing is said."""
    said = benchmark_parity(row)
    if not said:
        return tag("span", "-")
    equal, against = row["parity"]["equal"], row["parity"]["against"]
    word = tag("span", "= the same" if equal else "≠ others", class_=f"status {'good' if equal else 'warn'}")
    told = f"as {against} without" if equal else f"{said}, beside {against} without"
    return tag("span", word, tag("span", told, class_="under"))


def latency(p50: float, p90: float, p99: float, longest: float) -> Safe:
    """A bar to the median and a line on to the 99th percentile, on a scale that ends at `longest`."""

    def x(at: float) -> float:
        return min(float(WIDE), max(1.5, (WIDE - 4) * at / longest) if longest > 0 else 1.5)

    ends = [tag("line", class_="spread", x1=number(x(at)), x2=number(x(at)), y1=low, y2=18 - low)
            for at, low in ((p90, 5), (p99, 2)) if at <= longest]  # fmt: skip
    return chart(
        f"median {p50:.3g} ms, 90th percentile {p90:.3g} ms, 99th percentile {p99:.3g} ms",
        tag("rect", class_="track", x=0, y=5, width=WIDE, height=8, rx=2),
        tag("rect", class_="bar", x=0, y=5, width=number(x(p50)), height=8, rx=2),
        tag("line", class_="spread", x1=number(x(p50)), x2=number(x(p99)), y1=9, y2=9), *ends,
    )  # fmt: skip
