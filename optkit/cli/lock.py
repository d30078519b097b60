"""`optkit lock`: write down the versions a recipe's plan is made with, for `--frozen` to hold others to."""

from __future__ import annotations

from pathlib import Path

import click

from optkit.cli import completing
from optkit.cli.common import json_option, overrides_only, quiet_option, read_plan, relative
from optkit.cli.text import clean, count, tell


@click.command("lock")
@click.argument("recipe", metavar="RECIPE", shell_complete=completing.files)
@overrides_only
@click.option(
    "--to",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The lock file; default: RECIPE's name with .lock.json, beside it.",
)
@json_option
@quiet_option
def command(recipe: str, sets: tuple[str, ...], to: Path | None, as_json: bool, quiet: bool) -> None:
    r"""Write down the versions that a recipe is converted with here.

    \b
    optkit lock recipe.yaml               # writes recipe.lock.json; commit it
    optkit convert --frozen recipe.yaml   # refuses other versions, and changes

    The lock holds the version of every tool of every step, of environments that steps run in, of Python and optkit, the
    platform, and a digest of what the recipe means. Files that the recipe names are no part of it.
    """
    from optkit.comparing.lock import lock_path, write_lock

    path = to or lock_path(recipe)
    lock = write_lock(read_plan(recipe, sets, ()), path)
    if as_json:
        click.echo(lock.to_text(), nl=False)
    elif not quiet:
        held = len(lock.tools) + sum(len(v) for v in (*lock.environments.values(), *lock.interpreters.values()))
        tell(f"locked {count(held, 'tool')}: {clean(relative(path))}")
