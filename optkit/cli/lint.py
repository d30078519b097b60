"""`optkit lint`: what a target refuses of a model, before any long build."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from optkit.cli.common import json_option, write_file
from optkit.cli.text import Cell, clean, count, has_colour, paint, table


@click.command("lint")
@click.argument("model", metavar="MODEL", type=click.Path(path_type=Path))
@click.option(
    "--for",
    "targets",
    multiple=True,
    required=True,
    metavar="TARGET",
    help="The runtime it is meant for: onnxruntime, openvino, tensorrt, tflite or edgetpu; repeatable.",
)
@click.option(
    "--sarif",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write SARIF 2.1.0, for code scanning and editors.",
)
@json_option
def command(model: Path, targets: tuple[str, ...], sarif: Path | None, as_json: bool) -> None:
    """Say which operators, types, opsets and quantised integers of a model a target refuses.

    Names each node, the torch module it came from where the file tells, and what mends it. MODEL is an .onnx file, for
    tflite also a .tflite file and for edgetpu that alone, or a folder that optkit delivered. Exits 1 when something is
    refused.
    """
    import json

    from optkit.lints.linting import lint

    results = [lint(model, target) for target in dict.fromkeys(targets)]
    if sarif:
        from optkit import __version__
        from optkit.lints.linting import model_file
        from optkit.reports.sarif import render

        write_file(sarif, render([(model_file(model, r["target"]), r) for r in results], __version__))
    click.echo(json.dumps(results, indent=1) if as_json else "\n\n".join(draw(result) for result in results))
    if any(result["refused"] for result in results):
        raise click.exceptions.Exit(1)


def draw(result: dict[str, Any]) -> str:
    """The verdict about one target, its refusals, and each remedy once."""
    colour = has_colour(sys.stdout)
    refused, target = result["refused"], clean(result["target"])
    total = f"{target} refuses {count(len(refused), 'node')}" if refused else f"{target} refuses nothing"
    lines = [paint(total, "bad" if refused else "good", colour)]
    if refused:
        modules = any(r["module"] for r in refused)
        rows = [
            (
                Cell(r["node"] or "the graph"),
                r["operator"] or "-",
                *([r["module"] or "-"] if modules else []),
                r["what"],
            )
            for r in refused
        ]
        lines.append(table(("node", "operator", *(["module"] if modules else []), "why"), rows, sys.stdout, indent=2))
        lines += [f"  try: {clean(hint)}" for hint in dict.fromkeys(r["hint"] for r in refused) if hint]
    lines += [f"  not looked at: {clean(text)}" for text in result["unchecked"]]
    return "\n".join(lines)
