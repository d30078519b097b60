"""`optkit passes`: every pass there is, or one with its options and an example."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from optkit.cli import completing
from optkit.cli.common import json_option
from optkit.cli.text import Cell, clean, has_colour, paint, table

if TYPE_CHECKING:
    from optkit.plugin import Pass


@click.command("passes")
@click.argument("name", required=False, shell_complete=completing.pass_names)
@json_option
@click.option("--markdown", "as_markdown", is_flag=True, help="Print a page with every pass, as docs/passes.md.")
def command(name: str | None, as_json: bool, as_markdown: bool) -> None:
    """List the passes, or explain the one called NAME: its options, and a step that uses it."""
    import json

    from optkit.registry import get_pass, passes

    if as_markdown:
        if name is not None or as_json:
            raise click.UsageError("--markdown prints a page with every pass: leave NAME and --json out")
        click.echo(page(list(passes().values())), nl=False)
    elif name is not None:
        found = get_pass(name)
        click.echo(json.dumps(as_data(found), indent=1) if as_json else explain(found))
    elif as_json:
        click.echo(json.dumps([as_data(p) for p in passes().values()], indent=1))
    else:
        rows = [
            (
                p.name,
                f"{p.source} -> {p.target}",
                Cell(p.fidelity, "warn" if p.fidelity == "lossy" else ""),
                data_text(p),
                sentence(p.summary),
            )
            for p in passes().values()
        ]
        click.echo(table(("pass", "turns", "fidelity", "data", ""), rows, sys.stdout))
        click.echo("\noptkit passes NAME explains one; `to: FORMAT` in a recipe finds conversions by itself")


def sentence(summary: str) -> str:
    """A summary that begins with a capital."""
    return summary[:1].upper() + summary[1:]


def data_text(use: Pass) -> str:
    """Whether a pass is fitted on data."""
    return "depends" if callable(use.needs_data) else "needed" if use.needs_data else ""


def as_data(use: Pass) -> dict[str, Any]:
    """A pass as JSON data, its options as JSON Schema."""
    needs = "depends on its options" if callable(use.needs_data) else use.needs_data
    return {
        "name": use.name, "version": use.version, "source": use.source, "target": use.target, "summary": use.summary,
        "fidelity": use.fidelity, "precision": use.precision, "needs_data": needs, "tools": list(use.tools),
        "timeout_seconds": use.timeout_seconds, "options": use.options.model_json_schema(by_alias=True),
    }  # fmt: skip


def explain(use: Pass) -> str:
    """A pass, its options and an example step, as text."""
    facts = [("turns", f"{use.source} into {use.target}"), ("fidelity", use.fidelity)]
    if use.precision:
        facts.append(("computes in", use.precision))
    if use.needs_data:
        facts.append(
            ("fits on data", "depends on its options" if callable(use.needs_data) else "yes, name it with data:")
        )
    facts.append(("needs", ", ".join(use.tools) or "nothing but optkit"))
    if use.environment:
        facts.append(("runs in", f"an environment of its own: optkit env create {use.environment}"))
    parts = [
        f"{paint(use.name, 'bold', has_colour(sys.stdout))}: {clean(use.summary[:1].lower() + use.summary[1:])}",
        table((), facts, sys.stdout, indent=2),
    ]
    rows = option_rows(use)
    parts.append(
        table(("option", "type", "default", "meaning"), rows, sys.stdout, indent=2) if rows else "  It has no options."
    )
    return "\n\n".join([*parts, example(use)])


def option_rows(use: Pass) -> list[tuple[str, str, str, str]]:
    """Name, type, default and meaning of each option; a default of "-" leaves the choice to the pass."""
    schema = use.options.model_json_schema(by_alias=True)
    required = schema.get("required", [])
    return [
        (name, type_text(field, schema), "required" if name in required else default_text(field.get("default")),
         field.get("description", ""))
        for name, field in schema.get("properties", {}).items()
    ]  # fmt: skip


def default_text(value: Any) -> str:
    """A default as a recipe would write it."""
    import json

    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)


def type_text(field: dict[str, Any], root: dict[str, Any]) -> str:
    """A JSON Schema type in words: "integer >= 1", "minmax | entropy", "list of text"."""
    if "$ref" in field:
        return type_text(root["$defs"][field["$ref"].rpartition("/")[2]], root)
    if "enum" in field or "const" in field:
        return " | ".join(str(v) for v in field.get("enum", [field.get("const")]))
    if choices := field.get("anyOf") or field.get("oneOf"):
        return " | ".join(dict.fromkeys(type_text(c, root) for c in choices if c.get("type") != "null"))
    kind = str(field.get("type", "any"))
    if kind == "array":
        items: dict[str, Any] = field.get("items") or next(iter(field.get("prefixItems", [])), {})
        return f"list of {type_text(items, root)}"
    if kind == "object":
        return "mapping" + (f" of {', '.join(field['properties'])}" if field.get("properties") else "")
    if "minimum" in field and "maximum" in field:
        return f"{kind} {field['minimum']:g} to {field['maximum']:g}"
    signs = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
    limits = "".join(f" {sign} {field[key]:g}" for key, sign in signs if key in field)
    return {"string": "text", "boolean": "true | false"}.get(kind, kind) + limits


def page(listed: Sequence[Pass]) -> str:
    """Every pass, its options and an example step, as Markdown."""
    from optkit.reports.markdown import escape
    from optkit.reports.markdown import table as markdown_table

    def rows(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
        return [markdown_table(head, [[escape(text) for text in line] for line in lines])]

    parts = [
        "# Passes",
        "",
        "Written by `optkit passes --markdown`. A recipe names a pass with `use:`; `to: FORMAT` finds conversions",
        "by itself that are neither lossy nor fitted on data.",
        "",
        *rows(
            ("pass", "turns", "into", "fidelity", ""),
            ((p.name, p.source, p.target, p.fidelity, sentence(p.summary)) for p in listed),
        ),
    ]
    for use in listed:
        facts = [f"{use.source} to {use.target}, {use.fidelity}"]
        facts += [f"computes in {use.precision}"] if use.precision else []
        facts += [{"needed": "fits on data", "depends": "may fit on data"}[text]] if (text := data_text(use)) else []
        facts.append(f"needs {', '.join(use.tools) or 'nothing but optkit'}")
        facts += (
            [f"runs in an environment of its own, `optkit env create {use.environment}`"] if use.environment else []
        )
        parts += [
            "",
            f"## {use.name}",
            "",
            f"{escape(sentence(use.summary))}.",
            "",
            f"{'; '.join(facts)}.",
            "",
        ]
        if options := option_rows(use):
            parts += [*rows(("option", "type", "default", "meaning"), options), ""]
        parts += ["```yaml", example(use), "```"]
    return "\n".join(parts) + "\n"


def example(use: Pass) -> str:
    """A step of a recipe that uses the pass."""
    import yaml

    from optkit.registry import passes

    made = any(other.target == use.source != other.source for other in passes().values())
    parent = f"STEP_THAT_GIVES_{use.source.upper()}" if made else "source"
    option = example_option(use)
    lines = [
        "steps:",
        f"  - id: {use.name.rpartition('.')[2].removeprefix('to_')}",
        f"    from: {parent}",
        f"    use: {use.name}",
    ]
    if use.wants_data(use.options.model_validate(yaml.safe_load(f"{{{option}}}"))):
        lines.append("    data: fit" + ("  # where its options need it" if callable(use.needs_data) else ""))
    elif use.needs_data:
        lines.append("    # data: fit, where its options need it")
    if use.fidelity == "lossy":
        lines.append('    check: ["cosine >= 0.99"]')
    if option:
        lines.append(f"    with: {{{option}}}")
    return "\n".join(lines)


def example_option(use: Pass) -> str:
    """One option with a value it takes, as `name: value`; "" where no value is plain from its type."""
    schema = use.options.model_json_schema(by_alias=True)
    found = []
    for name, field in schema.get("properties", {}).items():
        found += [(name, value, f'"{value}"') for value in field.get("examples", [])]
        if field.get("default") is not None and not isinstance(field["default"], list | dict):
            found.append((name, field["default"], default_text(field["default"])))
            continue
        first = type_text(field, schema).partition(" | ")
        if first[1] and first[0].isidentifier() and first[0] not in ("text", "any", "mapping"):
            found.append((name, first[0], first[0]))
        if field.get("default") is None and "number" in str(field):
            found.append((name, 0.5, "0.5"))
    return next((f"{name}: {text}" for name, value, text in found if _fits(use, {name: value})), "")


def _fits(use: Pass, options: dict[str, Any]) -> bool:
    from pydantic import ValidationError

    try:
        use.options.model_validate(options)
    except ValidationError:
        return False
    return True
