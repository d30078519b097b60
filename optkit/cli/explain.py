"""`optkit explain`: what the code of an error means, why optkit refuses, and what to do."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from optkit.cli import completing
from optkit.cli.common import json_option
from optkit.cli.text import has_colour, paint, table

if TYPE_CHECKING:
    from optkit.explaining import Explanation


@click.command("explain")
@click.argument("codes", metavar="[CODE]...", nargs=-1, shell_complete=completing.codes)
@json_option
def command(codes: tuple[str, ...], as_json: bool) -> None:
    r"""Say what the codes of errors mean, why optkit refuses, and what to do. Without a code, list all.

    \b
    optkit explain OPK-231

    The first digit is the exit code: 1 a check, 2 the recipe or command, 3 a step, 4 this machine; 7 a bug in optkit.
    """
    import json

    from optkit.explaining import explain, explanations

    chosen = [explain(code) for code in codes] or list(explanations().values())
    if as_json:
        click.echo(json.dumps([asdict(e) for e in chosen], indent=1, ensure_ascii=False))
    elif codes:
        click.echo("\n\n".join(map(draw, chosen)))
    else:
        click.echo(table(("code", "what it says"), [(e.code, e.title) for e in chosen], sys.stdout))


def draw(explanation: Explanation) -> str:
    """An explanation as paragraphs."""
    head = paint(explanation.code, "bold", has_colour(sys.stdout))
    parts = [f"{head}  {explanation.title}", explanation.meaning]
    parts += [f"Why: {explanation.why}", f"Do:  {explanation.do}"]
    return "\n\n".join(parts)
