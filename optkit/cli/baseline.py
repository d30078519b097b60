"""`optkit baseline`: keep what a run reached, look at it, and hold other runs to it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from optkit.cli import completing
from optkit.cli.common import json_option, quiet_option, relative
from optkit.cli.text import clean, count, table, tell

_FILE = click.Path(dir_okay=False, path_type=Path)
_RUN = click.Path(path_type=Path)


@click.group("baseline")
def command() -> None:
    r"""Keep what a run reached, and hold later runs to it.

    \b
    optkit convert recipe.yaml --out build/net
    optkit baseline save build/net            # writes baseline.json, to commit
    optkit baseline diff build/net baseline.json  # exits 1 where it is worse

    With `baseline: baseline.json` in the recipe, every run is compared, and fails where it is worse.
    """


@command.command("save")
@click.argument("run", type=_RUN, shell_complete=completing.files)
@click.option("--to", type=_FILE, default=Path("baseline.json"), metavar="FILE", help="Default: baseline.json.")
@json_option
@quiet_option
def save(run: Path, to: Path, as_json: bool, quiet: bool) -> None:
    """Write the figures of RUN, its output folder or report.json, into a baseline; one that is there is replaced."""
    from optkit.comparing.baseline import make_baseline, read_run, write_baseline

    record = make_baseline(read_run(run).data)
    write_baseline(record, to)
    if as_json:
        click.echo(json.dumps({"file": str(to), "deliveries": list(record["deliveries"])}, indent=1))
    elif not quiet:
        tell(f"saved {count(len(record['deliveries']), 'delivered step')}: {clean(relative(to))}")


@command.command("show")
@click.argument("file", type=_FILE, default=Path("baseline.json"), shell_complete=completing.files)
@json_option
def show(file: Path, as_json: bool) -> None:
    """Print what a baseline holds: the figures, and what they were measured with."""
    from optkit.comparing.baseline import read_baseline

    record = read_baseline(file)
    if as_json:
        click.echo(json.dumps(record, indent=1, ensure_ascii=False))
        return
    conditions = record["conditions"]
    facts = [("name", record["name"]), ("made", record["made"]),
             *((key, str(value)) for key, value in conditions["hardware"].items() if value),
             *conditions["tools"].items()]  # fmt: skip
    click.echo(table(("delivery", "figure", "value"), list(_figures(record)), sys.stdout))
    click.echo("\n" + table(("baseline", ""), [(key, clean(value)) for key, value in facts], sys.stdout))


def _figures(record: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    from optkit.parity.scores import value_text
    from optkit.reports.spelling import size, spelt

    for step, figures in record["deliveries"].items():
        name = clean(step)
        yield name, "status", figures["status"]
        if "size_bytes" in figures:
            yield name, "size", size(figures["size_bytes"])
        for key in ("sqnr_db", "mismatch"):
            if key in figures:
                yield name, key, spelt(key, figures[key])
        for metric, score in figures.get("scores", {}).items():
            yield name, clean(metric), clean(value_text(score))
        for against, speed in figures.get("speed", {}).items():
            r = speed["ratio"]
            yield name, f"speed over {clean(against)}", f"{r['value']:.2f}x [{r['low']:.2f}, {r['high']:.2f}]"


@command.command("diff")
@click.argument("run", type=_RUN, shell_complete=completing.files)
@click.argument("file", type=_FILE, default=Path("baseline.json"), shell_complete=completing.files)
@click.option(
    "--allow",
    "allowed",
    multiple=True,
    metavar="FIGURE=AMOUNT",
    help="A tolerance, such as size=2%, sqnr_db=3, metric=1%, speed=20% or latency=10%; repeatable.",
)
@json_option
@quiet_option
def diff(run: Path, file: Path, allowed: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Hold RUN against a baseline: exit code 1 where a figure is worse by more than tolerance and noise."""
    from optkit.cli.summary import baseline_lines, baseline_wrong
    from optkit.cli.text import has_colour, paint
    from optkit.comparing.baseline import read_baseline, read_run, require_measured
    from optkit.comparing.regression import compare
    from optkit.reports.rows import against_baseline

    before, report = read_baseline(file), read_run(run).data
    tolerance, stated = tolerances(allowed)
    require_measured(before, stated, relative(file))
    found = {**compare(before, report, tolerance, report["recipe"]["only"] or None), "file": relative(file)}
    shown: dict[str, Any] = {"baseline": found}
    if as_json:
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))
    elif not quiet:
        click.echo(baseline_lines(shown, sys.stdout))
        if found["held"]:
            click.echo("\n" + paint(clean(against_baseline(shown)), "good", has_colour(sys.stdout)))
            for text in shown["baseline"]["changes"]:
                click.echo(f"  changed: {clean(text)}")
    if not found["held"]:
        tell(baseline_wrong(shown, sys.stderr))
        raise click.exceptions.Exit(1)


def tolerances(texts: tuple[str, ...]) -> tuple[Any, frozenset[str]]:
    """The `Tolerance` of a command line, and which of them it states. Raises UserError."""
    from pydantic import ValidationError

    from optkit.errors import UserError, did_you_mean
    from optkit.spec.sections import Tolerance

    stated: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        name = name.strip()
        if not sign or name not in Tolerance.model_fields:
            hint = did_you_mean(name, Tolerance.model_fields) if sign else "write it like: --allow size=2%"
            raise UserError(f"--allow {text}: {name!r} is no figure with a tolerance" if sign else
                            f"--allow {text}: there is no amount", hint=hint, code="OPK-201")  # fmt: skip
        stated[name] = value.strip()
    try:
        return Tolerance(**stated), frozenset(stated)
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        name = str(item["loc"][0])
        what = f"--allow {name}={stated[name]}: {item['msg'].removeprefix('Value error, ')}"
        raise UserError(what, hint=f"for example --allow {name}=3", code="OPK-201") from None
