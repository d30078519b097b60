"""`optkit inspect`: what is in a model file or a delivered folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from optkit.cli.common import json_option
from optkit.cli.text import clean, table
from optkit.models.looking import look
from optkit.reports.spelling import size

MOST_OPERATORS = 12


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def command(path: Path, as_json: bool) -> None:
    """Say what is in a model file or a delivered folder: inputs, outputs, operators, size, precision.

    Reads the file; does not run it.
    """
    import json

    found = look(path)
    click.echo(json.dumps(found, indent=1, default=str) if as_json else draw(found))


def draw(found: Mapping[str, Any]) -> str:
    """The facts as text."""
    from optkit.artifact import TensorSpec

    signature = found["signature"] or {"inputs": [], "outputs": []}
    rows = [("file", found["path"]), ("format", found["format"]), ("size", size(found["size_bytes"]))]
    for kind in ("inputs", "outputs"):
        for number, spec in enumerate(signature[kind]):
            tensor = TensorSpec.from_json(spec)
            rows.append((kind if number == 0 else "", str(tensor) + (f" {tensor.layout}" if tensor.layout else "")))
    shown = ("path", "format", "size_bytes", "signature", "delivered", "operators")
    facts = {key: fact(key, value) for key, value in found.items() if key not in shown}
    rows += [(key.replace("_", " "), text) for key, text in facts.items() if text]
    parts = [table((), rows, sys.stdout)]
    if operators := found.get("operators"):
        parts.append(operators_text(operators))
    if delivered := found.get("delivered"):
        made = delivered.get("provenance") or {}
        chain = " -> ".join(step["pass"] for step in made.get("passes", []))
        history = [
            ("delivered as", f"{made.get('name')}, step {delivered.get('step')}: {delivered.get('status')}"),
            ("made by", chain),
            ("digest", str(delivered.get("digest"))),
        ]
        parts.append(table((), history, sys.stdout))
    return "\n\n".join(parts)


def fact(key: str, value: Any) -> str:
    """A value of `inspect` in one line."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return size(value) if key.endswith("bytes") else f"{value:,}".replace(",", " ")
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {fact(k, v)}" for k, v in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(fact(key, v) for v in value) or "none"
    return str(value)


def operators_text(operators: Mapping[str, int]) -> str:
    """Operator counts, the most frequent first."""
    ranked = sorted(operators.items(), key=lambda item: (-item[1], item[0]))
    rows = [(clean(name), str(number)) for name, number in ranked[:MOST_OPERATORS]]
    rest = sum(number for _, number in ranked[MOST_OPERATORS:])
    if rest:
        rows.append((f"{len(ranked) - MOST_OPERATORS} others", str(rest)))
    return table(("operator", "count"), rows, sys.stdout)
