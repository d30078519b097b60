"""`optkit cache`: what the cache holds, and making it hold less."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from optkit.cli.common import cache_option, json_option, quiet_option
from optkit.cli.text import clean, count, table, tell

if TYPE_CHECKING:
    from optkit.caching.place import Place
    from optkit.errors import OptkitError


@click.group("cache")
def command() -> None:
    r"""Look at the cache, or trim it. Nothing else ever does: it grows with every new result.

    \b
    optkit cache info
    optkit cache trim --to 10GB

    It lies in $OPTKIT_CACHE, else in ~/.cache/optkit. Any number of processes may share it. Behind it there may be
    one at a URL, $OPTKIT_CACHE_REMOTE, that machines share; `trim` leaves that one alone.
    """


@command.command("info")
@cache_option
@json_option
def info(cache: str | None, as_json: bool) -> None:
    """Say where the cache is, how much it holds, and how many processes work with it.

    A remote cache is asked for the list of all that it has; one that cannot be reached is told, and the exit code is 4.
    """
    import json
    import time

    from optkit.caching.place import place_of
    from optkit.caching.trim import usage
    from optkit.reports.spelling import duration, size

    place = place_of(cache)
    root = place.root.absolute()
    found = usage(root)
    entries, partial = (sum(h.size_bytes for h in some) for some in (found.entries, found.partial))
    oldest = min((h.used for h in (*found.entries, *found.partial)), default=None)
    remote, error = behind(place)
    if as_json:
        data = {"path": str(root), "results": len(found.entries), "result_bytes": entries,
                "unfinished": len(found.partial), "unfinished_bytes": partial,
                "oldest_use": oldest, "processes": found.users, "remote": remote}  # fmt: skip
        click.echo(json.dumps(data, indent=1))
    else:
        rows = [
            ("folder", clean(root)),
            ("results", f"{len(found.entries)}, {size(entries)}"),
            ("checkpoints of unfinished steps", f"{len(found.partial)}, {size(partial)}"),
            ("longest not used", "-" if oldest is None else duration(max(0.0, time.time() - oldest))),
            ("processes that use it now", str(found.users)),
        ]
        if remote:
            modes = f" ({', '.join(remote['modes'])})" if remote["modes"] else ""
            rows.append(("remote", clean(remote["url"]) + modes))
            held = [] if remote["result_bytes"] is None else [size(remote["result_bytes"])]
            rows.append(("results there", "not reached" if error else ", ".join([str(remote["results"]), *held])))
        click.echo(table(("cache", ""), rows, sys.stdout))
    if error:
        raise error


def behind(place: Place) -> tuple[dict[str, Any] | None, OptkitError | None]:
    """What is known of the cache behind the folder, as JSON data, and why it cannot be used."""
    if place.remote is None:
        return None, None
    from optkit.caching.place import OPTIONAL, READ_ONLY, shown
    from optkit.caching.remote import Remote
    from optkit.errors import OptkitError

    found: dict[str, Any] = {"url": shown(place.remote), "modes": sorted(place.modes), "results": None,
                             "result_bytes": None}  # fmt: skip
    try:
        modes = place.modes - {OPTIONAL} | {READ_ONLY}  # who only looks leaves nothing there, and wants to know
        found["results"], found["result_bytes"] = Remote(place.remote, modes).open().holdings()
    except OptkitError as error:
        return found, error
    return found, None


@command.command("trim")
@click.option("--to", required=True, metavar="SIZE", help="How much may be left, such as 10GB, 500MB or 0.")
@cache_option
@json_option
@quiet_option
def trim(to: str, cache: str | None, as_json: bool, quiet: bool) -> None:
    """Remove results and checkpoints, those used longest ago first, until at most SIZE is left.

    What a running optkit has used is never removed; where that is more than SIZE, the rest goes and the exit code is 4.
    Only the folder of this machine is trimmed, never a remote cache: let its store expire what is old.
    """
    import json
    from dataclasses import asdict

    from optkit.caching.place import place_of, shown
    from optkit.caching.trim import parse_size
    from optkit.caching.trim import trim as remove
    from optkit.errors import UnavailableError
    from optkit.reports.spelling import size

    limit, place = parse_size(to), place_of(cache)
    done = remove(place.root.absolute(), limit)
    if as_json:
        click.echo(json.dumps(asdict(done), indent=1))
    elif not quiet:
        went = f"removed {count(done.removed, 'result')}, {size(done.freed_bytes)}; " if done.removed else ""
        tell(f"{went}{size(done.left_bytes)} left")
        if place.remote:
            tell(f"{clean(shown(place.remote))} is left as it is")
    if done.left_bytes > limit:
        raise UnavailableError(
            f"{size(done.left_bytes)} of the cache are in use or another user's, more than {to}",
            hint="the same again when the runs that use it have ended",
            code="OPK-408",
        )
