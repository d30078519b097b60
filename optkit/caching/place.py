"""Where results are kept: a folder of this machine and, where one is named, a cache behind it that machines share."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from optkit.errors import UnavailableError, UserError, did_you_mean

READ_ONLY, OPTIONAL = "read-only", "optional"

MODES = {
    READ_ONLY: "nothing is uploaded",
    OPTIONAL: "where it fails, that is told, and the run goes on with the folder alone",
}
"""What $OPTKIT_CACHE_MODE may say, one or both, separated by a comma."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")


@dataclass(frozen=True)
class Place:
    """The cache's folder, and the URL behind it with its modes, of `MODES`."""

    root: Path
    remote: str | None = None
    modes: frozenset[str] = frozenset()


def is_url(text: str) -> bool:
    """Whether a text is a URL, as fsspec reads them, and no folder's name."""
    return _URL.match(text) is not None


def place_of(given: str | Path | None = None) -> Place:
    """The cache that a `--cache` names, a folder or a URL, completed by the environment.

    The folder: `given`, else $OPTKIT_CACHE, else $XDG_CACHE_HOME/optkit, else ~/.cache/optkit. The URL: `given`, else
    $OPTKIT_CACHE_REMOTE; one in $OPTKIT_CACHE counts as well. Raises UserError for variables that contradict each
    other and for a file, UnavailableError without a home.
    """
    text = str(given) if given is not None else ""
    named, remote = os.environ.get("OPTKIT_CACHE", ""), os.environ.get("OPTKIT_CACHE_REMOTE", "")
    if remote and not is_url(remote):
        folder = Path(remote).expanduser().absolute()
        raise UserError(
            f"OPTKIT_CACHE_REMOTE is {remote!r}, which is no URL", hint=f"for a folder: file://{folder}", code="OPK-203"
        )
    if is_url(named):
        if remote and remote != named:
            what = "OPTKIT_CACHE and OPTKIT_CACHE_REMOTE name two URLs"
            raise UserError(what, hint="let OPTKIT_CACHE be the folder of this machine", code="OPK-203")
        named, remote = "", named
    if is_url(text):
        text, remote = "", text
    try:
        if text or named:
            root = Path(text) if text else Path(named).expanduser()
        else:
            root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "optkit"
    except RuntimeError as error:
        hint = "name one with --cache DIR or OPTKIT_CACHE"
        raise UnavailableError(f"there is no place for the cache: {error}", hint=hint, code="OPK-405") from error
    if text and root.is_file():
        raise UserError(f"{text} is a file, and a cache is a folder or a URL", hint="name a folder", code="OPK-203")
    return Place(root, remote or None, _modes(bool(remote)))


def _modes(has_remote: bool) -> frozenset[str]:
    words = [word.strip() for word in os.environ.get("OPTKIT_CACHE_MODE", "").split(",") if word.strip()]
    for word in words:
        if word not in MODES:
            hint = did_you_mean(word, MODES)
            raise UserError(f"OPTKIT_CACHE_MODE has {word!r}, which it does not know", hint=hint, code="OPK-203")
    if words and not has_remote:
        what = "OPTKIT_CACHE_MODE says how to use a remote cache, and none is named"
        raise UserError(what, hint="set OPTKIT_CACHE_REMOTE=URL, or unset OPTKIT_CACHE_MODE", code="OPK-203")
    return frozenset(words)


def default_root() -> Path:
    """The folder of the cache where a command names none. Raises as `place_of`."""
    return place_of().root


def shown(url: str) -> str:
    """A URL that may be printed: without the password in it."""
    return re.sub(r"(//[^/@:]*):[^/]+@", r"\1:***@", url)
