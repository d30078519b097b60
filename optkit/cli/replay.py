"""`optkit replay`: one recorded step again, alone."""

from __future__ import annotations

from pathlib import Path

import click

from optkit.cli.common import json_option, quiet_option
from optkit.cli.text import clean, tell
from optkit.reports.spelling import duration


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
    import shutil
    import tempfile

    from optkit.cli.console import waiting
    from optkit.cli.failure import describe
    from optkit.errors import from_json
    from optkit.worker import replay

    made = out is None
    out = out or Path(tempfile.mkdtemp(prefix="optkit-replay-"))
    log = out.with_name(out.name + ".log")
    try:
        with waiting(f"replaying {step}", quiet):
            result = replay(step, out)
    finally:
        if made and not any(out.iterdir()):
            out.rmdir()
    if as_json:
        click.echo(json.dumps(result, indent=1))
    if failed := result.get("error") or result.get("deferred"):
        error = from_json(failed)
        tell(describe(error))
        if error.details and not quiet:
            tell("\n" + clean(error.details, lines=True))
        if log.is_dir() and not quiet:
            tell(f"\nits log is in {clean(log)}")
        raise click.exceptions.Exit(error.exit_code)
    shutil.rmtree(log, ignore_errors=True)
    if not quiet and not as_json:
        tell(f"done in {duration(result.get('seconds'))}; its files are in {clean(out)}")
