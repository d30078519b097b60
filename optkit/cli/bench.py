"""`optkit bench`: latency, throughput, start, memory and size of artifacts beside one another."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import click

from optkit.cli import completing
from optkit.cli.common import json_option, quiet_option
from optkit.cli.text import Cell, clean, count, table, tell
from optkit.reports.spelling import size

MIB = 1 << 20


@click.command("bench")
@click.argument("artifacts", metavar="ARTIFACT...", nargs=-1, required=True, shell_complete=completing.files)
@click.option(
    "--data",
    metavar="SPEC",
    shell_complete=completing.files,
    help="Samples: FILE.npz, a folder of images, FILE.py:NAME or random:32 (the default).",
)
@click.option("--batch", metavar="N,...", help="Samples per inference; default: 1, or what the models are fixed at.")
@click.option("--threads", metavar="N,...", help="Threads of each runtime; default: all cores.")
@click.option(
    "--against",
    metavar="ARTIFACT",
    shell_complete=completing.files,
    help="What speeds are ratios to; default: the first.",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME:DTYPE[DIMS]",
    help="An input, such as image:float32[batch,3,224,224], where the models do not know their own; repeatable.",
)
@click.option(
    "--dim",
    "dims",
    multiple=True,
    metavar="NAME=MIN:OPT:MAX",
    help="The sizes of a dynamic dim, such as sequence=8:64:128; repeatable.",
)
@click.option("--seconds", type=float, metavar="S", help="How long each runs, at most; default: 3.")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="RUNTIME.NAME=VALUE",
    help="A setting of a runtime, such as openvino.INFERENCE_PRECISION_HINT=bf16, onnx.execution_mode=parallel or "
    "torch.compile=true; repeatable. What it is for is measured with it and without.",
)
@json_option
@quiet_option
def command(artifacts: tuple[str, ...], data: str | None, batch: str | None, threads: str | None, against: str | None,
            inputs: tuple[str, ...], dims: tuple[str, ...], seconds: float | None, sets: tuple[str, ...], as_json: bool,
            quiet: bool) -> None:  # fmt: skip
    """Measure artifacts beside one another: model files, delivered folders or FILE.py:NAME.

    Each runs in a process of its own, in turns with the others and on the same samples. A speed is a ratio with its
    95 % interval. Latency is that of one inference, start the import of the runtime, opening and first inference
    together. Peak memory is all that the process had resident: Python, runtime, model and samples.
    """
    import json

    from optkit.cli.console import waiting
    from optkit.cli.flags import example_flags
    from optkit.drafting.shorthand import model_section, parse_dim, parse_input
    from optkit.errors import UserError
    from optkit.running.racing import SECONDS
    from optkit.spec.runtimes import parse_settings
    from optkit.speed.benching import bench

    sizes, counts = numbers("--batch", batch), numbers("--threads", threads)
    ranges = {name: (r["min"], r.get("opt", r["min"]), r["max"]) for name, r in map(parse_dim, dims)}
    given = dict(map(parse_input, inputs))
    try:
        with waiting(f"measuring {count(len(artifacts), 'artifact')}", quiet):
            found = bench(
                artifacts, data=data, batch=sizes, threads=counts, against=against, inputs=given or None,
                dims=ranges or None, seconds=SECONDS if seconds is None else seconds,
                settings=parse_settings(sets),
            )  # fmt: skip
    except UserError as error:
        if error.subject == "inputs" and not given:
            named = [ref for ref in (*artifacts, against) if ref and error.what.startswith(f"{ref}: ")]
            error.hint = example_flags(model_section(named[0] if named else artifacts[0]))
        raise
    if as_json:
        click.echo(json.dumps(found, indent=1))
    elif not quiet:
        click.echo(draw(found))
    notes = list(found["notes"])
    if found["synthetic"]:
        notes.append("measured on random data; some models are faster or slower on real samples: --data FILE.npz")
    notes += dict.fromkeys(filter(None, map(other_answers, found["rows"])))
    if not quiet:
        for note in notes:
            tell(f"note: {clean(note)}")


def other_answers(row: Mapping[str, Any]) -> str:
    """What a setting did to the answers; "" where it changed none."""
    from optkit.reports.spelling import spelt

    parity = row["parity"]
    if not parity or parity["equal"]:
        return ""
    told = [*(spelt(name, parity[name]) for name in ("cosine", "sqnr_db", "mismatch") if name in parity),
            *parity["problems"]]  # fmt: skip
    return f"{row['artifact']} ({row['provider']}) gives other answers: {', '.join(told)} against {parity['against']}"


def numbers(flag: str, text: str | None) -> tuple[int, ...]:
    """The whole numbers of "1,8". Raises UserError."""
    from optkit.errors import UserError

    words = [] if text is None else text.split(",")
    if wrong := [word for word in words if not word.strip().isdecimal() or int(word) < 1]:
        raise UserError(f"{flag} {text}: {wrong[0]!r} is no whole number from 1", hint=f"{flag} 1,8")
    return tuple(dict.fromkeys(int(word) for word in words))


def draw(found: Mapping[str, Any]) -> str:
    """One table for each batch and number of threads."""
    return "\n\n".join(
        f"batch {size_}, {count(threads, 'thread')}\n{rows_table(list(rows))}"
        for (threads, size_), rows in groupby(found["rows"], key=lambda row: (row["threads"], row["batch"]))
    )


def rows_table(rows: list[Mapping[str, Any]]) -> str:
    """One line per artifact."""
    head = ("artifact", "p50 ms", "p90 ms", "p99 ms", "samples/s", "start s", "peak MiB", "size", "speed", "run by")
    unsteady = any(row["unsteady"] for row in rows)
    cells = [
        (
            row["artifact"],
            *(milliseconds(row["latency_ms"][key]) for key in ("p50", "p90", "p99")),
            f"{row['samples_per_second']:.4g}" if row["samples_per_second"] < 1e4
            else f"{row['samples_per_second']:.0f}",
            f"{row['open_seconds'] + row['first_seconds']:.2f}",
            "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / MIB:.0f}",
            size(row["size_bytes"]),
            speed(row),
            row["provider"],
            *([row["unsteady"]] if unsteady else []),
        )
        for row in rows
    ]  # fmt: skip
    return table((*head, *(["not steady"] if unsteady else [])), cells, sys.stdout)


def milliseconds(value: float) -> str:
    """Three digits: "0.0412", "1.23", "123"."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def speed(row: Mapping[str, Any]) -> Cell:
    """A row's speed beside the first: "2.31x (2.25 to 2.40)"."""
    r = row["ratio"]
    if r is None:
        return Cell("1", "dim")
    style = {"faster": "good", "slower": "bad"}.get(row["verdict"], "")
    return Cell(f"{r['value']:.2f}x ({r['low']:.2f} to {r['high']:.2f})", style)
