"""`optkit doctor`: what is installed here, what is broken, and what it can run on."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from optkit.cli import completing
from optkit.cli.text import Cell, clean, is_terminal, table
from optkit.cli.text import tell as say
from optkit.reports.spelling import size

_STYLES = {"ok": "good", "other version": "warn", "broken": "bad", "not installed": "dim"}


@click.command("doctor")
@click.option(
    "--require",
    "required",
    multiple=True,
    metavar="NAME",
    shell_complete=completing.extras,
    help="Exit 4 unless this package, or all of this extra, works; repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(required: tuple[str, ...], as_json: bool) -> None:
    """Say what is installed here, and what is broken.

    Imports each package in a child process. Exits 0 when optkit's own needs are met; a backend is needed only by who
    uses it, so name those you need with --require.
    """
    import json

    from optkit.envs.doctor import examine, unmet

    live = is_terminal(sys.stderr)

    def tell(name: str) -> None:
        if live:
            say(f"\r\x1b[Kimporting {name} ...", end="")

    try:
        report = examine(tell)
    finally:
        if live:
            say("\r\x1b[K", end="")
    problems = [*report["problems"], *unmet(report, required)]
    click.echo(json.dumps({**report, "problems": problems, "ok": not problems}, indent=1) if as_json else draw(report))
    if problems:
        say("\n".join(f"problem: {clean(p)}" for p in problems))
        raise click.exceptions.Exit(4)


def draw(report: Mapping[str, Any]) -> str:
    """The report of `optkit.envs.doctor.examine` as text."""
    python, machine, cache = report["python"], report["machine"], report["cache"]
    facts = [
        ("optkit", report["optkit"]),
        ("Python", f"{python['version']} ({python['executable']}), needs {python['expected']}"),
        ("machine", f"{machine['processor']}, {machine['cores']} cores, {size(machine['memory_bytes'])} memory"),
        ("system", machine["platform"]),
        (
            "cache",
            f"{cache['path']}, {size(cache['free_bytes'])} free"
            + (f"; behind it {clean(cache['remote'])}" if cache["remote"] else ""),
        ),
        *((f"on {p['name']}", devices(p["devices"])) for p in report["packages"] if p["devices"] is not None),
    ]
    rows = [
        (p["name"], ", ".join(p["extras"]) or ("optkit itself" if p["base"] else "-"), p["version"] or "-",
         p["expected"] or "any", Cell(p["status"], _STYLES[p["status"]]), said(p))
        for p in report["packages"]
    ]  # fmt: skip
    head = ("package", "extra", "installed", "expected", "status", "")
    parts = [table((), facts, sys.stdout), table(head, rows, sys.stdout)]
    if report["environments"]:
        from optkit.cli.env import draw as draw_environments

        parts.append(draw_environments(report["environments"]))
    return "\n\n".join(parts)


def said(package: Mapping[str, Any]) -> str:
    """What is wrong with a package and what puts it right; "" when nothing is."""
    if package["status"] == "other version":
        return f"works; optkit is tested with {package['expected'].removeprefix('==')}"
    if package["status"] == "not installed" and not (package["extras"] or package["base"]):
        return "optkit can do without it"
    return "; ".join(text for text in (package["error"], package["install"]) if text)


def devices(found: Any) -> str:
    """The devices a package named, in one line."""
    if isinstance(found, dict):
        return ", ".join(f"{name} ({full})" for name, full in found.items()) or "no device"
    return ", ".join(map(str, found)) or "no CUDA device"
