"""`optkit check`: the parity of any two artifacts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from optkit.cli import completing
from optkit.cli.common import json_option, quiet_option
from optkit.cli.text import Cell, clean, has_colour, paint, table, tell
from optkit.reports.layers import drawn, others, remarks, told
from optkit.reports.rows import broken, reasons


@click.command("check")
@click.argument("a", metavar="A", shell_complete=completing.files)
@click.argument("b", metavar="B", shell_complete=completing.files)
@click.option(
    "--data",
    metavar="SPEC",
    shell_complete=completing.files,
    help="Samples: FILE.npz, a folder of images, FILE.py:NAME or random:32 (the default, which proves little).",
)
@click.option(
    "--bound",
    "bounds",
    multiple=True,
    metavar="BOUND",
    help='What must hold, such as "cosine >= 0.99"; repeatable. Default: float32 rounding.',
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
    help="The sizes of a dynamic dim to check over, such as batch=1:8:64; repeatable.",
)
@click.option(
    "--layers",
    is_flag=True,
    help="Also look inside: name the layer of B that makes the difference, and draw them all.",
)
@json_option
@quiet_option
def command(a: str, b: str, data: str | None, bounds: tuple[str, ...], inputs: tuple[str, ...],
            dims: tuple[str, ...], layers: bool, as_json: bool, quiet: bool) -> None:  # fmt: skip
    """Compare artifact B with artifact A on data: model files, delivered folders or FILE.py:NAME.

    Exits 1 when a bound does not hold.
    """
    import json

    from optkit.api import compare
    from optkit.cli.console import waiting
    from optkit.cli.failure import lines
    from optkit.cli.flags import example_flags
    from optkit.drafting.shorthand import model_section, parse_dim, parse_input
    from optkit.errors import UserError
    from optkit.parity.bounds import BoundError, parse_bound

    for text in bounds:
        try:
            parse_bound(text)
        except BoundError as error:
            raise UserError(f"--bound: {error}", hint=error.hint) from None
    ranges = {name: (r["min"], r.get("opt", r["min"]), r["max"]) for name, r in map(parse_dim, dims)}
    given = dict(map(parse_input, inputs))
    try:
        with waiting(f"comparing {b} with {a}", quiet):
            result = compare(a, b, data=data, bounds=bounds, inputs=given or None, dims=ranges or None,
                             layers=layers)  # fmt: skip
    except UserError as error:
        if error.subject == "inputs" and not given:
            error.hint = example_flags(model_section(a if error.what.startswith(f"{a}: ") else b))
        raise
    if as_json:
        click.echo(json.dumps(result, indent=1))
    elif not quiet:
        click.echo(draw(result))
    notes = list(result.get("notes") or [])
    if result.get("synthetic"):
        notes.append("compared on random data; judge on real samples with --data FILE.npz")
    if not quiet:
        for note in notes:
            tell(f"note: {clean(note)}")
    if not result["held"]:
        first = next(iter(broken({"check": result})), "nothing was compared")
        hint = "--layers names the layer that makes the difference" if not layers else ""
        if not bounds:
            hint = 'state what must hold, where B may be coarser than float32: --bound "cosine >= 0.999"' + (
                f"; {hint}" if hint else "")  # fmt: skip
        tell(lines("error", f"{b} does not hold against {a}: {first}", "", hint, code="OPK-101"))
        raise click.exceptions.Exit(1)


def draw(result: Mapping[str, Any]) -> str:
    """The cases, their verdicts, and whether all of it holds."""
    held = "holds" if result["held"] else "does not hold"
    last = paint(held, "good" if result["held"] else "bad", has_colour(sys.stdout))
    by = f", run by {clean(result['provider'])}" if result.get("provider") else ""
    text = f"{cases_table(result['cases'])}\n\n{clean(result['b'])} {last} against {clean(result['a'])}{by}"
    return f"{text}\n\n{layers_text(result)}" if result.get("blame") else text


def layers_text(result: Mapping[str, Any]) -> str:
    """The layer to blame, and the layers drawn."""
    found = result["blame"]
    lines = [told(result), others(result), *drawn(found), *remarks(found)]
    return "\n".join(clean(line) for line in lines if line)


def cases_table(cases: list[Any]) -> str:
    """One line per verdict, and per problem that no bound is needed for."""
    rows: list[tuple[str | Cell, ...]] = []
    for case in cases:
        told = [(True, v["text"]) for v in case["verdicts"] if v["held"]]
        told += [(False, text) for _, text in reasons(case)]
        for held, text in told or [(case["held"], "finite, and of the right shapes")]:
            mark = Cell("holds", "good") if held else Cell("fails", "bad")
            rows.append((case["name"], str(case["samples"]), mark, text))
    return table(("case", "samples", "", "measured"), rows, sys.stdout)
