"""`optkit schema`: the JSON Schema of a recipe, or of a report."""

from __future__ import annotations

import click


@click.command("schema")
@click.option("--report", is_flag=True, help="Of report.json instead, for programs that read it.")
def command(report: bool) -> None:
    r"""Print the JSON Schema (draft 2020-12) of a recipe, so that editors complete and check recipes.

    \b
    For example, with the YAML language server:
    optkit schema > recipe.schema.json, and as a recipe's first line
    # yaml-language-server: $schema=recipe.schema.json
    """
    import json

    if report:
        from optkit.reports.document import report_schema as schema
    else:
        from optkit.spec.schema import recipe_schema as schema
    click.echo(json.dumps(schema(), indent=2, ensure_ascii=False))
