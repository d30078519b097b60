"""`optkit diff`: what differs between two runs, or between two artifacts."""

from __future__ import annotations

import json
import sys

import click

from optkit.cli import completing
from optkit.cli.common import json_option, quiet_option
from optkit.cli.text import clean, table, tell


@click.command("diff")
@click.argument("old", metavar="OLD", shell_complete=completing.files)
@click.argument("new", metavar="NEW", shell_complete=completing.files)
@json_option
@quiet_option
def command(old: str, new: str, as_json: bool, quiet: bool) -> None:
    r"""Say what differs between two runs or two artifacts; nothing is run.

    \b
    optkit diff build/monday build/tuesday       # runs: folders, or report.json
    optkit diff build/net/fp32 build/net/int8    # delivered folders
    optkit diff old.onnx new.onnx                # model files

    Of runs: what they were made with, steps and their options, figures. Of artifacts: signature, operators, precision,
    size; where a run delivered them, also parity and speed. A speed differs where the intervals do not meet.

    Exits 0 where nothing differs, 1 where something does, 2 where the two cannot be compared.
    """
    from optkit.comparing.diffing import diff

    found = diff(old, new)
    if as_json:
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))
    elif not quiet and found["rows"]:
        runs = found["kind"] == "runs"
        rows = [
            (*([clean(row["step"]) or "-"] if runs else []), row["part"], clean(row["item"]),
             *(clean(row[key]) or "-" for key in ("old", "new")))
            for row in found["rows"]
        ]  # fmt: skip
        click.echo(table((*(["step"] if runs else []), "part", "", "old", "new"), rows, sys.stdout))
    if not quiet:
        for note in found["notes"]:
            tell(f"note: {clean(note)}")
    if found["same"]:
        if not as_json and not quiet:
            tell("nothing differs")
        return
    raise click.exceptions.Exit(1)
