"""What a shell offers for an argument or option: file names, formats, passes, a recipe's steps. Never an error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """File names, by the shell itself."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def formats(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The formats that some pass makes of another."""
    from optkit.registry import passes

    with contextlib.suppress(Exception):  # a broken plug-in: the command itself tells
        made = {use.target for use in passes().values() if use.source != use.target}
        return _starting(sorted(made), incomplete)
    return []


def pass_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The passes there are."""
    from optkit.registry import passes

    with contextlib.suppress(Exception):
        return _starting(passes(), incomplete)
    return []


def codes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The codes of errors."""
    from optkit.explaining import explanations

    return _starting(explanations(), incomplete.upper())


def step_ids(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The steps of the recipe that stands on the command line already."""
    from pathlib import Path

    from optkit.spec.yamlread import read_yaml

    named = [ctx.params.get("model"), ctx.params.get("recipe"), *ctx.args]  # args: what an unfinished line left over
    with contextlib.suppress(Exception):  # no recipe yet, or one with mistakes
        recipe = Path(str(next(filter(None, named))))
        return _starting([step["id"] for step in read_yaml(recipe).data["steps"]], incomplete)
    return []


def environments(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The environments that `optkit env` makes."""
    from optkit.envs.environments import known

    return _starting(known(), incomplete)


def extras(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The distributions and extras that `optkit doctor` knows."""
    from optkit.cli.requirements import requirements, wanted

    with contextlib.suppress(Exception):
        known = wanted(requirements()[0])
        return _starting(dict.fromkeys([*(e for w in known for e in w.extras), *(w.name for w in known)]), incomplete)
    return []


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
