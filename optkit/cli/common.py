"""What several commands share: reading a recipe into a plan, and options with one meaning everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from optkit.cli import completing

if TYPE_CHECKING:
    from optkit.errors import OptkitError
    from optkit.planning import Plan
    from optkit.recipe import Recipe

F = TypeVar("F", bound=Callable[..., Any])


def overrides(command: F) -> F:
    """The options that change what a recipe says."""
    command = click.option(
        "--only",
        multiple=True,
        metavar="STEP",
        shell_complete=completing.step_ids,
        help="Only this step and what it needs; repeatable.",
    )(command)
    return overrides_only(command)


def overrides_only(command: F) -> F:
    """The option that changes a value of a recipe."""
    return click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a value, such as steps.int8.with.per_channel=false; repeatable.",
    )(command)


def frozen_options(command: F) -> F:
    """Whether only what a lock says may run."""
    command = click.option(
        "--lock",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        shell_complete=completing.files,
        help="With --frozen: the lock; default: RECIPE's name with .lock.json, beside it.",
    )(command)
    return click.option(
        "--frozen", is_flag=True, help="Refuse a recipe or versions other than those that `optkit lock` wrote down."
    )(command)


def cache_option(command: F) -> F:
    """Where results are kept."""
    return click.option(
        "--cache",
        metavar="DIR|URL",
        help="The cache: a folder, or the URL of one that is shared; default $OPTKIT_CACHE or ~/.cache/optkit, and "
        "$OPTKIT_CACHE_REMOTE behind it.",
    )(command)


def json_option(command: F) -> F:
    """Machine-readable output."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")(command)


def quiet_option(command: F) -> F:
    """No progress and no tables."""
    return click.option("--quiet", "-q", is_flag=True, help="Print errors only.")(command)


def read_plan(path: str, sets: Sequence[str], only: Sequence[str]) -> Plan:
    """The plan of a recipe file, overridden and cut. Raises RecipeError or UserError."""
    from optkit.planning import make_plan
    from optkit.recipe import load_recipe

    plan = make_plan(load_recipe(path, sets))
    return plan.only(only) if only else plan


def frozen_plan(plan: Plan, recipe: str, frozen: bool, lock: Path | None) -> Plan:
    """The plan, held to its lock if `frozen`. Raises as `optkit.comparing.lock.require_lock` does."""
    from optkit.errors import UserError

    if frozen:
        from optkit.comparing.lock import require_lock

        require_lock(plan, recipe, lock)
    elif lock is not None:
        raise UserError("--lock says which lock --frozen holds to, and --frozen is not there", hint="add --frozen")
    return plan


def placed(error: OptkitError, recipe: Recipe) -> OptkitError:
    """The error with its place in the recipe's file, where it names a key and not yet a place."""
    if error.where is None and error.subject:
        error.where = recipe.place_of(error.subject)
    return error


def relative(path: Path) -> str:
    """The path as one would type it from the working directory."""
    try:
        return str(path.resolve().relative_to(Path.cwd().resolve()))
    except ValueError:
        return str(path)


def write_file(path: Path, text: str) -> None:
    """Write a file that the command line names, whole or not at all. Raises UserError where its folder is none, and
    UnavailableError where it may not be written.
    """
    from optkit.errors import UnavailableError, UserError
    from optkit.report import write_atomically

    try:
        write_atomically(path, text)
    except (NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", hint="name a file in a folder") from error
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror}"
        raise UnavailableError(what, hint="name a file in a folder that may be written", code="OPK-405") from error
