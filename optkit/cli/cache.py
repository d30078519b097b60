"""`optkit cache`: what the cache holds, and making it hold less."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from optkit.cli.common import cache_option, json_option, quiet_option
from optkit.cli.text import clean, count, table, tell


@click.group("cache")
def command() -> None:
    r"""Look at the cache, or trim it. Nothing else ever does: it grows with every new result.

    \b
    optkit cache info
    optkit cache trim --to 10GB

    It lies in $OPTKIT_CACHE, else in ~/.cache/optkit. Any number of processes may share it.
    """


@command.command("info")
@cache_option
@json_option
def info(cache: Path | None, as_json: bool) -> None:
    """Say where the cache is, how much it holds, and how many processes work with it."""
    import json
    import time

    from optkit.cache import default_root
    from optkit.cache_trim import usage
    from optkit.reports.rows import duration, size

    root = (cache or default_root()).absolute()
    found = usage(root)
    entries, partial = (sum(h.size_bytes for h in some) for some in (found.entries, found.partial))
    oldest = min((h.used for h in (*found.entries, *found.partial)), default=None)
    if as_json:
        data = {"path": str(root), "results": len(found.entries), "result_bytes": entries,
                "unfinished": len(found.partial), "unfinished_bytes": partial,
                "oldest_use": oldest, "processes": found.users}  # fmt: skip
        click.echo(json.dumps(data, indent=1))
        return
    rows = [
        ("folder", clean(root)),
        ("results", f"{len(found.entries)}, {size(entries)}"),
        ("checkpoints of unfinished steps", f"{len(found.partial)}, {size(partial)}"),
        ("longest not used", "-" if oldest is None else duration(max(0.0, time.time() - oldest))),
        ("processes that use it now", str(found.users)),
    ]
    click.echo(table(("cache", ""), rows, sys.stdout))


@command.command("trim")
@click.option("--to", required=True, metavar="SIZE", help="How much may be left, such as 10GB, 500MB or 0.")
@cache_option
@json_option
@quiet_option
def trim(to: str, cache: Path | None, as_json: bool, quiet: bool) -> None:
    """Remove results and checkpoints, those used longest ago first, until at most SIZE is left.

    What a running optkit has used is never removed; where that is more than SIZE, the rest goes and the exit code is 4.
    """
    import json
    from dataclasses import asdict

    from optkit.cache import default_root
    from optkit.cache_trim import parse_size
    from optkit.cache_trim import trim as remove
    from optkit.errors import UnavailableError
    from optkit.reports.rows import size

    limit = parse_size(to)
    done = remove((cache or default_root()).absolute(), limit)
    if as_json:
        click.echo(json.dumps(asdict(done), indent=1))
    elif not quiet:
        went = f"removed {count(done.removed, 'result')}, {size(done.freed_bytes)}; " if done.removed else ""
        tell(f"{went}{size(done.left_bytes)} left")
    if done.left_bytes > limit:
        raise UnavailableError(
            f"{size(done.left_bytes)} of the cache are in use or another user's, more than {to}",
            hint="the same again when the runs that use it have ended",
            code="OPK-408",
        )
