"""`optkit verify`: delivered folders proven again, on this machine."""

from __future__ import annotations

import sys
from typing import Any

import click

from optkit.cli.common import json_option, quiet_option
from optkit.cli.text import Cell, clean, table, tell
from optkit.reports.rows import broken


@click.command("verify")
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path())
@json_option
@quiet_option
def command(folders: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Prove delivered folders again, on this machine: their files' digests, and their answers to their test vectors.

    A run's output folder stands for all deliveries in it.
    Exits 1 when one does not hold, 4 when this machine cannot run one.
    """
    import json

    from optkit.api import verify
    from optkit.cli.console import waiting
    from optkit.cli.failure import describe
    from optkit.errors import OptkitError

    results: list[dict[str, Any]] = []
    code = 0
    for folder in [inner for named in folders for inner in deliveries_in(named)]:
        try:
            with waiting(f"verifying {folder}", quiet):
                result = verify(folder)
        except OptkitError as error:
            tell(describe(error))
            results.append(
                {"artifact": folder, "held": False, "problems": [error.what], "cases": [], "error": error.to_json()}
            )
            code = max(code, error.exit_code)
            continue
        results.append(result)
        code = max(code, 0 if result["held"] else 1)
    if as_json:
        click.echo(json.dumps(results, indent=1))
    elif not quiet:
        click.echo(draw(results))
    else:
        for result in results:
            if not result["held"] and "error" not in result:
                tell(f"error: {clean(result['artifact'])} does not hold: {clean(told(result))}")
    if code:
        raise click.exceptions.Exit(code)


def deliveries_in(folder: str) -> list[str]:
    """The folder itself, or, where that is a run's output folder, every delivery in it."""
    from pathlib import Path

    from optkit.delivery.deliver import RECORD

    if not (Path(folder) / RECORD).is_file():
        inner = sorted(
            str(path.parent) for path in Path(folder).glob(f"*/{RECORD}") if not path.parent.name.startswith(".")
        )
        return inner or [folder]
    return [folder]


def draw(results: list[dict[str, Any]]) -> str:
    """One line per folder."""
    rows = [(r["artifact"], r.get("format", "?"), status(r), r.get("provider") or "-", told(r)) for r in results]
    return table(("delivery", "format", "", "run by", ""), rows, sys.stdout)


def status(result: dict[str, Any]) -> Cell:
    """The verdict in a word; there is none where the artifact is made for another machine."""
    if result.get("error", {}).get("class") == "NotHereError":
        return Cell("not here", "warn")
    return Cell("holds", "good") if result["held"] else Cell("fails", "bad")


def told(result: dict[str, Any]) -> str:
    """What is wrong with a delivery, or what was shown of one that holds."""
    wrong = [*result["problems"], *broken({"check": result})]
    if wrong:
        return "; ".join(wrong)
    first = result["cases"][0]
    if first["name"] == "samples":  # the check itself, which was left to this machine
        return f"its check, made here: {len(result['cases'])} cases hold, {first['samples']} samples"
    return f"{first['samples']} test vectors answered as recorded"
