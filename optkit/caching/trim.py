"""How much a cache holds, and making it hold less: what was used longest ago goes first, what is in use never."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from optkit.cache import ABANDONED_SECONDS, NEW_SECONDS, UNKNOWN, Cache, guard, lock_folder, unlock_folder
from optkit.errors import UserError

_UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

_TICK_SECONDS = 0.01  # file systems take their time from a clock that moves every few milliseconds


@dataclass(frozen=True)
class Held:
    """One thing in a cache that can be removed: a finished result, or the checkpoints of an unfinished one."""

    folder: Path
    size_bytes: int
    used: float


@dataclass(frozen=True)
class Usage:
    """What a cache holds. users: processes that work with it now."""

    entries: tuple[Held, ...]
    partial: tuple[Held, ...]
    users: int

    @property
    def size_bytes(self) -> int:
        """The bytes of all that can be removed."""
        return sum(h.size_bytes for h in (*self.entries, *self.partial))


@dataclass(frozen=True)
class Trimmed:
    """What a trim did: how many results and checkpoints went, the bytes they had, the bytes that are left."""

    removed: int
    freed_bytes: int
    left_bytes: int


def parse_size(text: str) -> int:
    """Bytes from "10GB", "500 MB", "2GiB" or "0". Raises UserError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(iB|B)?\s*", text, re.IGNORECASE)
    if match is None or (match[3] and match[3].lower() == "ib" and not match[2]):
        raise UserError(f"{text!r} is no size", hint="for example 10GB, 500MB or 2GiB", code="OPK-201")
    unit = match[2].upper()
    factor = 1024 ** "BKMGT".index(unit) if (match[3] or "").lower() == "ib" else _UNITS[unit]
    return int(float(match[1]) * factor)


def usage(root: Path) -> Usage:
    """What the cache under `root` holds; one that is not there is not made and holds nothing."""
    entries = tuple(_held(folder) for folder in _folders(root / "entries", 2))
    partial = tuple(_held(folder) for folder in _folders(root / "partial", 1))
    return Usage(entries, partial, len(_born(root)))


def trim(root: Path, limit_bytes: int) -> Trimmed:
    """Remove results and checkpoints, used longest ago first, until at most `limit_bytes` are left.

    What a process that works with this cache has used is kept, so that more may be left.
    """
    cache = Cache(root)
    own = cache.stage()
    gone: list[Held] = []
    with guard(cache.root, exclusive=True):
        found = usage(cache.root)
        since = min(_born(cache.root, own.parent), default=float("inf"))
        left = found.size_bytes
        for held in sorted((*found.entries, *found.partial), key=lambda h: (h.used, h.folder.name)):
            if left <= limit_bytes or held.used >= since:
                break
            if _take(held, own / f"{len(gone)}"):
                gone.append(held)
                left -= held.size_bytes
    shutil.rmtree(own, ignore_errors=True)  # after the lock is given up: deleting gigabytes holds nobody up
    return Trimmed(len(gone), sum(h.size_bytes for h in gone), left)


def _take(held: Held, to: Path) -> bool:
    """Move something out of the cache, unless a worker holds it."""
    lock = lock_folder(held.folder)
    try:
        if lock is None:
            return False
        held.folder.rename(to)
        return True
    except OSError:  # of another user
        return False
    finally:
        unlock_folder(lock)


def _folders(root: Path, depth: int) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for entry in sorted(root.iterdir()):
            if depth > 1:
                yield from _folders(entry, depth - 1)
            elif entry.is_dir():
                yield entry


def _held(folder: Path) -> Held:
    size, used = 0, 0.0
    with contextlib.suppress(OSError):
        used = folder.stat().st_mtime
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118
    return Held(folder, size, used)


def _born(root: Path, own: Path | None = None) -> list[float]:
    """When each living process but `own` began to use the cache."""
    found = []
    for folder in _folders(root / "staging", 1):
        if folder == own:
            continue
        with contextlib.suppress(OSError):  # it ends right now
            number = folder.name.partition("-")[2]
            began = int(number) / 1e9 - _TICK_SECONDS if number.isdecimal() else 0.0
            age = time.time() - folder.stat().st_mtime
            lock = lock_folder(folder) if age > NEW_SECONDS else None
            if lock is None or (lock == UNKNOWN and age < ABANDONED_SECONDS):
                found.append(began)
            unlock_folder(lock)
    return found
