"""`optkit convert`: run a recipe, or what a model and flags stand for; deliver what was proven."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from optkit.cli import completing
from optkit.cli.common import (
    cache_option,
    frozen_options,
    frozen_plan,
    json_option,
    overrides,
    placed,
    quiet_option,
    relative,
)
from optkit.cli.text import clean, tell

if TYPE_CHECKING:
    from optkit.planning import Plan
    from optkit.report import Report


@click.command("convert")
@click.argument("model", metavar="RECIPE|MODEL", shell_complete=completing.files)
@click.option(
    "--to",
    multiple=True,
    metavar="FORMAT",
    shell_complete=completing.formats,
    help="Without a recipe: a format to make; repeatable.",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME:DTYPE[DIMS]",
    help="Without a recipe: an input, such as image:float32[batch,3,224,224]; repeatable.",
)
@click.option(
    "--dim",
    "dims",
    multiple=True,
    metavar="NAME=MIN:OPT:MAX",
    help="Without a recipe: the sizes of a named dim, such as batch=1:8:64; repeatable.",
)
@click.option(
    "--data",
    metavar="SPEC",
    shell_complete=completing.files,
    help="Without a recipe: samples to judge on: FILE.npz, FILE.jsonl, a folder of images, FILE.py:NAME or "
    "random:32 (the default, which proves little).",
)
@click.option(
    "--weights", metavar="FILE", shell_complete=completing.files, help="Without a recipe: the weights of FILE.py:NAME."
)
@click.option(
    "--int8",
    multiple=True,
    metavar="BOUND",
    help="Without a recipe: int8 of each format too, with what this lets it lose, such as 'cosine >= 0.99' or "
    "'accuracy_drop <= 0.5%'; repeatable.",
)
@click.option(
    "--fit",
    metavar="SPEC",
    shell_complete=completing.files,
    help="With --int8: samples to fit it on, none of those in --data.",
)
@overrides
@frozen_options
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where deliveries go; default: build/NAME.",
)
@cache_option
@click.option(
    "--jobs", type=click.IntRange(min=1), metavar="N", help="Steps at a time; default: one per core, at most 4."
)
@json_option
@quiet_option
def command(
    model: str, to: tuple[str, ...], inputs: tuple[str, ...], dims: tuple[str, ...], data: str | None,
    weights: str | None, int8: tuple[str, ...], fit: str | None, sets: tuple[str, ...], only: tuple[str, ...],
    frozen: bool, lock: Path | None, out: Path | None, cache: str | None, jobs: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    r"""Make every artifact of a recipe, prove each against the source model, and deliver those that hold.

    \b
    optkit convert recipe.yaml
    optkit convert model.onnx --to openvino --data samples.npz
    optkit convert model.onnx --to openvino --data judge.npz \
        --int8 'cosine >= 0.99' --fit calibration.npz
    optkit convert net.py:build --weights net.safetensors --to onnx \
        --input 'image:float32[batch,3,224,224]' --dim batch=1:8:64

    Writes DIR/STEP for each delivery, DIR/report.json, and report.html, report.md and report.junit.xml
    drawn from it. With --json the report goes to stdout. In GitHub Actions the job's summary gets the
    report as well, and each failure an annotation at its line of the recipe.
    """
    flags = {"to": to, "inputs": inputs, "dims": dims, "data": data, "weights": weights, "int8": int8, "fit": fit}
    with on_github():
        plan = held(make(model, flags, sets, only), model, frozen, lock)
        out = out or Path("build") / plan.recipe.name
        report = run(plan, out, cache, jobs, quiet)
    if as_json:
        click.echo(report.to_json(), nl=False)
    summarise(report, out, quiet)
    tell_github(report)
    if report.exit_code:
        raise click.exceptions.Exit(report.exit_code)


@contextlib.contextmanager
def on_github() -> Iterator[None]:
    """In GitHub Actions, annotate an error that ends the command; elsewhere nothing."""
    from optkit.errors import OptkitError

    try:
        yield
    except OptkitError as error:
        if root := _checkout():
            from optkit.reports.github import of_error

            for line in of_error(error, root):
                tell(clean(line))
        raise


def tell_github(report: Report) -> None:
    """In GitHub Actions, annotate what failed and add the report to the job's summary; elsewhere nothing."""
    if (root := _checkout()) is None:
        return
    from optkit.reports.github import annotated, summary

    for line in annotated(report.data, root):
        tell(clean(line))
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(path).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(summary(report.data))


def _checkout() -> Path | None:
    """The folder that a GitHub Actions job works in; None anywhere else."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return None
    return Path(os.environ.get("GITHUB_WORKSPACE") or ".")


def held(plan: Plan, model: str, frozen: bool, lock: Path | None) -> Plan:
    """The plan, held to its lock if `frozen`. Raises UserError without a recipe: there is nothing to lock."""
    from optkit.drafting.shorthand import is_recipe
    from optkit.errors import UserError

    if frozen and not is_recipe(model):
        raise UserError("--frozen holds a recipe to its lock, and this is a model", hint=f"optkit init {model}")
    return frozen_plan(plan, model, frozen, lock)


def make(model: str, flags: Mapping[str, Any], sets: tuple[str, ...], only: tuple[str, ...]) -> Plan:
    """The plan of a recipe file, or of a model and the flags that stand for one. Raises UserError."""
    from optkit.cli.common import read_plan
    from optkit.cli.flags import example_flags
    from optkit.drafting.shorthand import is_recipe, model_section, recipe_data
    from optkit.errors import UserError
    from optkit.planning import make_plan
    from optkit.recipe import recipe_of
    from optkit.spec.yamlread import Document, set_value

    if is_recipe(model):
        if given := [
            f"--{name.removesuffix('s') if name in ('inputs', 'dims') else name}"
            for name, value in flags.items()
            if value
        ]:
            raise UserError(
                f"{', '.join(given)} has no place beside a recipe, which says it itself",
                hint="change the recipe, or override a value with --set",
            )
        return read_plan(model, sets, only)
    try:
        document = Document(recipe_data(model, **flags), None)
    except UserError as error:
        if error.subject == "inputs":
            error.hint = example_flags(model_section(model, flags["weights"]))
        raise
    for assignment in sets:
        set_value(document, assignment)
    plan = make_plan(recipe_of(document, Path.cwd()))
    return plan.only(only) if only else plan


def run(plan: Plan, out: Path, cache: str | None, jobs: int | None, quiet: bool) -> Report:
    """Execute a plan under a console, and draw its report beside its report.json."""
    from optkit.cache import open_cache
    from optkit.cli.console import Console, seconds_before
    from optkit.errors import OptkitError
    from optkit.execute import execute
    from optkit.reports.files import write_reports

    try:
        before = seconds_before(out / "report.json")
        with Console(quiet=quiet, passes={s.id: s.use.name for s in plan.steps}, expected=before) as console:
            report = execute(plan, out=out, cache=open_cache(cache), jobs=jobs, listen=console)
    except OptkitError as error:
        raise placed(error, plan.recipe) from None
    write_reports(report, out)
    return report


def summarise(report: Report, out: Path, quiet: bool) -> None:
    """Print on standard error what was delivered, what went wrong and where the reports are; errors only if `quiet`."""
    from optkit.cli.summary import (
        baseline_lines,
        baseline_wrong,
        benchmark_lines,
        budget_notes,
        deliveries_table,
        gate_lines,
        metric_lines,
        slower_notes,
        synthetic_note,
        verdict_line,
        wrongs,
    )  # fmt: skip

    if not quiet:
        tell("\n" + verdict_line(report.data, sys.stderr))
        for draw in (deliveries_table, metric_lines, gate_lines, benchmark_lines, baseline_lines):
            if drawn := draw(report.data, sys.stderr):
                tell("\n" + drawn)
    for text in filter(None, (*wrongs(report.data, sys.stderr), baseline_wrong(report.data, sys.stderr))):
        tell("\n" + text if not quiet else text)
    if not quiet:
        for note in (*budget_notes(report.data), *slower_notes(report.data)):
            tell("\n" + note)
        if note := synthetic_note(report.data):
            tell("\n" + note)
        tell(f"\nreport: {relative(out / 'report.html')}")
    if report.interrupted:
        tell("interrupted; finished steps are kept, and the same command goes on from there")
