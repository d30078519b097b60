"""The files that a pass's options name: what they hold decides the step's output, so it counts in the cache key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from optkit.artifact import digest_of
from optkit.data.imports import local_files, locate_module
from optkit.errors import UserError
from optkit.plugin import Options, Pass
from optkit.spec.dataspec import existing, is_file, resolve_path, split_callable

if TYPE_CHECKING:
    from optkit.cache import Cache

Files = dict[str, tuple[Path, ...]]


def named_files(use: Pass, options: Options, base: Path) -> Files:
    """Per text that `use.reads` gives, the files behind it, absolute; the one it names comes first.

    Of a callable, FILE.py:NAME or MODULE:NAME, these are its source and what that imports from beside it; of a folder
    all that lies in it. Raises UserError for what is not there.
    """
    return {text: _files_of(text, base) for text in use.reads(options)}


def _files_of(text: str, base: Path) -> tuple[Path, ...]:
    try:
        place, _ = ("", "") if text.startswith("package:") else split_callable(text)
    except ValueError:
        place = ""
    if place and not is_file(place):
        file = locate_module(place)
        if file is None:
            raise UserError(
                f"there is no module {place!r} with Python source on this machine",
                hint=f"install it, or name a file: models/net.py:{text.rpartition(':')[2]}",
            )
        return tuple(path.absolute() for path in local_files(file, place))
    path = existing(resolve_path(place or text, base)).absolute()
    if place:
        return tuple(file.absolute() for file in local_files(path))
    if not path.is_dir():
        return (path,)
    return tuple(sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts))


def named_digest(files: Mapping[str, tuple[Path, ...]], target: str, cache: Cache, *, known_only: bool) -> str | None:
    """What these files put into a cache key; None as in `Cache.digest`.

    A torch model's output names its code by path, so that there the paths count too.
    """
    digests = {text: cache.digest_all(paths, known_only=known_only) for text, paths in files.items()}
    if None in digests.values():
        return None
    places = {text: str(paths[0]) for text, paths in files.items() if paths} if target == "torch" else {}
    return digest_of([digests, places])
