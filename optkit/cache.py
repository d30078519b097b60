"""Content-addressed store of what was made, and a memory of file digests.

    ROOT/entries/ab/abcd.../entry.json + files/    one result under its key; appears whole, by a rename
    ROOT/staging/PID-XXXX/                         what is being made; a dead process's leftovers are swept
    ROOT/digests/ab/abcd....json                   sha256 of a user's file, valid while size, mtime and inode stand

A damaged entry is a miss and is deleted. Several processes may share one root: whoever renames first wins, and the
others take what is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optkit.artifact import digest_file, digest_of
from optkit.errors import UnavailableError

# A file written within this time of being read may change again without its mtime telling (coarse clocks).
_RACY_NS = 2_000_000_000


@dataclass(frozen=True)
class Entry:
    """A stored result: JSON `data` and, in `folder`, its files."""

    key: str
    folder: Path
    data: Mapping[str, Any]


class Cache:
    """The store under `root` ($OPTKIT_CACHE, else the user's cache folder). Raises UnavailableError if it is unusable."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_root()).absolute()
        try:
            for name in ("entries", "staging", "digests"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnavailableError(f"the cache folder {self.root} cannot be used: {error.strerror}",
                                   hint="name another with --cache DIR or OPTKIT_CACHE") from error
        self._sweep()

    def _sweep(self) -> None:
        for folder in (self.root / "staging").iterdir():
            pid = folder.name.split("-")[0]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists() and _is_old(folder):
                shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, key: str) -> Path:
        return self.root / "entries" / key[:2] / key

    def get(self, key: str) -> Entry | None:
        """The entry under `key`, or None. An entry whose files do not match their record is deleted."""
        folder = self._folder(key)
        try:
            record = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
            files, data = record["files"], record["data"]
            sound = record["key"] == key and all(_matches(folder / "files" / n, was) for n, was in files.items())
        except FileNotFoundError:
            sound = not folder.exists()
            if sound:
                return None
        except (OSError, ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return Entry(key, folder / "files", data)

    def stage(self) -> Path:
        """A new empty folder to make a result in; give it to `put`, or remove it."""
        folder = self.root / "staging" / f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        folder.mkdir()
        return folder

    def put(self, key: str, data: Mapping[str, Any], staged: Path | None = None,
            digests: Mapping[str, str] | None = None) -> Entry:
        """Store `data`, and the files in `staged` (which is consumed), under `key`.

        `digests` gives the sha256 of files whose maker has computed it already. Raises OSError when the disk is full;
        nothing is left behind then.
        """
        files = {}
        making = self.stage()
        try:
            inside = making / "files"
            if staged is not None:
                staged.rename(inside)
                for path in sorted(p for p in inside.rglob("*") if p.is_file()):
                    name = path.relative_to(inside).as_posix()
                    files[name] = _record(path, (digests or {}).get(name))
            else:
                inside.mkdir()
            record = {"key": key, "files": files, "data": data}
            (making / "entry.json").write_text(json.dumps(record, allow_nan=False), encoding="utf-8")
            folder = self._folder(key)
            folder.parent.mkdir(exist_ok=True)
            try:
                making.rename(folder)
            except OSError:
                winner = self.get(key)  # somebody else was first, or a damaged entry stands in the way
                if winner is not None:
                    return winner
                shutil.rmtree(folder, ignore_errors=True)
                making.rename(folder)
            return Entry(key, folder / "files", data)
        finally:
            shutil.rmtree(making, ignore_errors=True)

    def digest(self, path: Path, *, known_only: bool = False) -> str | None:
        """sha256 (hex) of a file, from memory while its size, mtime and inode are as they were.

        With `known_only`, None instead of reading a file of over 64 MiB. Raises OSError when it cannot be read.
        """
        stat = path.stat()
        place = str(path.absolute())
        mark = [place, stat.st_size, stat.st_mtime_ns, stat.st_ino]
        name = hashlib.sha256(place.encode()).hexdigest()
        memo = self.root / "digests" / name[:2] / f"{name}.json"
        try:
            known = json.loads(memo.read_text(encoding="utf-8"))
            if known["mark"] == mark:
                return str(known["digest"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        if known_only and stat.st_size > 64 << 20:
            return None
        digest = digest_file(path)
        if time.time_ns() - stat.st_mtime_ns > _RACY_NS:
            memo.parent.mkdir(exist_ok=True)
            temporary = memo.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps({"mark": mark, "digest": digest}), encoding="utf-8")
            temporary.replace(memo)
        return digest

    def digest_all(self, paths: Iterable[Path], *, known_only: bool = False) -> str | None:
        """One digest over the names and contents of several files; None as in `digest`."""
        parts = []
        for path in paths:
            digest = self.digest(path, known_only=known_only)
            if digest is None:
                return None
            parts.append([path.name, digest])
        return digest_of(parts)


def default_root() -> Path:
    """$OPTKIT_CACHE, else $XDG_CACHE_HOME/optkit, else ~/.cache/optkit."""
    if named := os.environ.get("OPTKIT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "optkit"


def _record(path: Path, sha256: str | None) -> dict[str, Any]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256 or digest_file(path)}


def _matches(path: Path, was: Mapping[str, Any]) -> bool:
    stat = path.stat()
    if stat.st_size != was["size"]:
        return False
    # A touched file is read again; an untouched one is believed, so that a 3 GB entry costs one stat.
    return bool(stat.st_mtime_ns == was["mtime_ns"] or digest_file(path) == was["sha256"])


def _is_old(folder: Path) -> bool:
    try:
        return time.time() - folder.stat().st_mtime > 60
    except OSError:
        return False
