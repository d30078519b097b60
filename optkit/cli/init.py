"""`optkit init`: a first recipe for a model."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from optkit.cli import completing
from optkit.cli.common import json_option, quiet_option
from optkit.cli.text import clean, tell


@click.command("init")
@click.argument("model", metavar="MODEL", shell_complete=completing.files)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    default=Path("recipe.yaml"),
    show_default=True,
    metavar="FILE",
    help="The recipe to write; - for standard output.",
)
@click.option(
    "--to",
    multiple=True,
    metavar="FORMAT",
    shell_complete=completing.formats,
    help="A format to make; repeatable. Default: all there are.",
)
@click.option(
    "--weights",
    metavar="FILE",
    shell_complete=completing.files,
    help="The weights of FILE.py:NAME; default: those beside it that fit.",
)
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@json_option
@quiet_option
def command(
    model: str, output: Path, to: tuple[str, ...], weights: str | None, force: bool, as_json: bool, quiet: bool
) -> None:
    """Look at MODEL and write a commented recipe for it.

    MODEL is a .onnx, .xml, .pt2, TorchScript, .keras, .h5 or frozen .pb file, a SavedModel or Hugging Face folder, or
    FILE.py:NAME, which is imported and built.
    """
    from optkit.cli.console import waiting
    from optkit.drafting.init import CHECK, write
    from optkit.errors import UserError
    from optkit.report import write_atomically

    to_stdout = str(output) == "-"
    if to_stdout and as_json:
        raise UserError("--json and the recipe cannot both go to standard output", hint="--output FILE")
    if output.is_dir():
        raise UserError(f"{output} is a folder", hint=f"--output {output / 'recipe.yaml'}")
    if not output.parent.is_dir():
        raise UserError(f"there is no folder {output.parent}", hint="make it, or write elsewhere with --output FILE")
    if output.exists() and not force and not to_stdout:
        raise UserError(f"{output} is already there", hint="--force overwrites it, --output FILE writes another")
    with waiting(f"looking at {model}", quiet):
        text = write(model, Path.cwd() if to_stdout else output.parent, to, weights)
    if to_stdout:
        click.echo(text, nl=False)
        return
    try:
        write_atomically(output, text)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}", hint="name another with --output") from error
    guesses = sum(CHECK in line and not line.startswith("#") for line in text.splitlines())
    if as_json:
        click.echo(json.dumps({"recipe": str(output), "guesses": guesses}, indent=1))
    elif not quiet:
        marked = f"; look at {guesses} guessed value{'s' * (guesses != 1)} in it" if guesses else ""
        tell(f"wrote {clean(output)}{marked}\nnext: optkit plan {clean(shlex.quote(str(output)))}")
