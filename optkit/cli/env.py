"""`optkit env`: environments of their own, for backends whose pins conflict with the rest."""

from __future__ import annotations

import json
import sys

import click

from optkit.cli import completing
from optkit.cli.common import json_option, quiet_option
from optkit.cli.text import Cell, clean, is_terminal, table
from optkit.cli.text import tell as say


@click.group("env")
def command() -> None:
    r"""Make, list and remove environments for backends whose pins conflict with the rest.

    \b
    optkit env create onnx2tf

    A step whose pass wants such an environment runs in it by itself. They lie in $OPTKIT_ENVIRONMENTS; else in
    optkit-environments of the virtual environment that optkit runs in, where that folder is there; else in
    ~/.cache/optkit-environments.
    """


@command.command("create")
@click.argument("name", shell_complete=completing.environments)
@click.option("--again", is_flag=True, help="Make it anew, also where it is there.")
@json_option
@quiet_option
def create(name: str, again: bool, as_json: bool, quiet: bool) -> None:
    """Make an environment, unless it is there.

    Takes over from the running environment what that has at the pinned version, and installs the rest with pip.
    """
    from optkit.envs.making import create as make

    live = is_terminal(sys.stderr) and not quiet

    def tell(text: str) -> None:
        if not quiet:
            say(f"\r\x1b[K{clean(text)} ..." if live else clean(text), end="" if live else "\n")

    try:
        made = make(name, tell, again=again)
    finally:
        if live:
            say("\r\x1b[K", end="")
    if as_json:
        click.echo(json.dumps(made, indent=1))
    elif not quiet:
        how = f"made: {made['linked']} packages taken over, {made['installed']} installed"
        say(f"{name}: {how if made['made'] else 'is there already'}; {clean(made['path'])}")


@command.command("list")
@json_option
def show(as_json: bool) -> None:
    """List the environments optkit knows, and which are there."""
    from optkit.envs.making import listing

    rows = listing()
    click.echo(json.dumps(rows, indent=1) if as_json else draw(rows))


def draw(rows: list[dict[str, object]]) -> str:
    """The table of environments."""
    drawn = [
        (str(r["name"]), Cell(str(r["status"]), "good" if r["status"] == "ok" else "dim"),
         ", ".join(r["wanted_by"]) if isinstance(r["wanted_by"], list) else "",
         clean(r["path"]) if r["status"] == "ok" else str(r["create"]))
        for r in rows
    ]  # fmt: skip
    return table(("environment", "status", "for", ""), drawn, sys.stdout)


@command.command("remove")
@click.argument("name", shell_complete=completing.environments)
@json_option
@quiet_option
def remove(name: str, as_json: bool, quiet: bool) -> None:
    """Remove an environment, those of its name that other versions of optkit or Python made too."""
    from optkit.envs.making import remove as delete

    gone = delete(name)
    if as_json:
        click.echo(json.dumps({"removed": [str(folder) for folder in gone]}, indent=1))
    elif not quiet:
        say("\n".join(f"removed {clean(folder)}" for folder in gone) or f"{name} is not there")


@command.command("path")
@click.argument("name", shell_complete=completing.environments)
@json_option
def path(name: str, as_json: bool) -> None:
    """Print the path of an environment's interpreter, for scripts. Exits 4 where it is not usable."""
    from optkit.envs.environments import require

    python = str(require(name).python)
    click.echo(json.dumps({"python": python}, indent=1) if as_json else python)
