"""`optkit report`: a run's report drawn again from its report.json."""

from __future__ import annotations

import json
from pathlib import Path

import click

from optkit.cli import completing
from optkit.cli.common import json_option, quiet_option, relative, write_file
from optkit.cli.text import clean, tell


def _file(form: str, text: str) -> click.Option:
    kind = click.Path(dir_okay=False, allow_dash=True, path_type=Path)
    return click.Option([f"--{form}"], type=kind, metavar="FILE", help=text, shell_complete=completing.files)


@click.command("report")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path), shell_complete=completing.files)
@json_option
@quiet_option
def command(
    run: Path, as_json: bool, quiet: bool, html: Path | None, junit: Path | None, markdown: Path | None
) -> None:
    """Draw a run's report again from its report.json; nothing is run.

    RUN is the folder that `optkit convert` wrote, or a report.json. Without --html, --junit or --markdown all three are
    drawn beside it; with any of them that one alone, into FILE, or on standard output where FILE is -.
    """
    from optkit.errors import UserError
    from optkit.report import Report
    from optkit.reports.files import FORMS, draw

    source = run / "report.json" if run.is_dir() else run
    asked = {form: path for form, path in (("html", html), ("junit", junit), ("markdown", markdown)) if path}
    if sum(str(path) == "-" for path in asked.values()) > 1:
        raise UserError("standard output takes one report, not several", hint="name a file for one")
    if len({path.resolve() for path in asked.values()}) < len(asked):
        raise UserError("two reports are to go into one file", hint="name a file for each")
    if as_json and "-" in map(str, asked.values()):
        raise UserError("--json and a report cannot both go to standard output", hint="name a file for the report")
    data = Report.read(source).data
    files = asked or {form: source.with_name(name) for form, name in FORMS.items()}
    for form, path in files.items():
        text = draw(form, data)
        if str(path) == "-":
            click.echo(text, nl=False)
            continue
        write_file(path, text)
        if not quiet and not as_json:
            tell(f"wrote {clean(relative(path))}")
    if as_json:
        click.echo(json.dumps({form: str(path) for form, path in files.items()}, indent=1))


command.params += [
    _file("html", "One page that opens offline."), _file("junit", "JUnit XML, for a CI system's test view."),
    _file("markdown", "For a pull request."),
]  # fmt: skip
