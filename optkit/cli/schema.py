"""`optkit schema`: the JSON Schema of a recipe."""

from __future__ import annotations

import click


@click.command("schema")
def command() -> None:
    r"""Print the JSON Schema (draft 2020-12) of a recipe, so that editors complete and check recipes.

    \b
    For example, with the YAML language server:
    optkit schema > recipe.schema.json, and as a recipe's first line
    # yaml-language-server: $schema=recipe.schema.json
    """
    import json

    from optkit.schema import recipe_schema

    click.echo(json.dumps(recipe_schema(), indent=2, ensure_ascii=False))
