"""`optkit replay`: one recorded step again, alone."""

from __future__ import annotations

from pathlib import Path

import click

from optkit.cli.common import json_option, quiet_option
from optkit.cli.text import clean
from optkit.reports.rows import duration


@click.command("replay")
@click.argument("step", metavar="STEP.json", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="An empty folder for what the step writes; default: a new temporary one.",
)
@json_option
@quiet_option
def command(step: Path, out: Path | None, as_json: bool, quiet: bool) -> None:
    """Run one recorded step again, in a process of its own.

    A failed step's file is named by the report under `replay`. Exits as the step itself deserves.
    """
    import json
    import tempfile

    from optkit.cli.failure import describe
    from optkit.errors import from_json
    from optkit.worker import replay

    out = out or Path(tempfile.mkdtemp(prefix="optkit-replay-"))
    result = replay(step, out)
    if as_json:
        click.echo(json.dumps(result, indent=1))
    if failed := result.get("error") or result.get("deferred"):
        error = from_json(failed)
        click.echo(describe(error), err=True)
        if error.details and not quiet:
            click.echo("\n" + clean(error.details, lines=True), err=True)
        raise click.exceptions.Exit(error.exit_code)
    if not quiet and not as_json:
        click.echo(f"done in {duration(result.get('seconds'))}; its files are in {clean(out)}", err=True)
