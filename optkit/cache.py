"""Content-addressed store of what was made, and a memory of file digests.

    ROOT/entries/ab/abcd.../entry.json + files/    one result under its key; appears whole, by a rename
    ROOT/staging/XXXX/YYYY/                        what process XXXX is making; a dead one's leftovers are swept
    ROOT/partial/abcd..../                         checkpoints of an unfinished result, beyond the run
    ROOT/digests/ab/abcd....json                   sha256 of a user's file, valid while size, mtime and inode stand

A damaged entry is a miss and is deleted. Several processes may share one root: whoever renames first wins, and the
others take what is there. Each holds a lock on its own staging folder, so that others know it is alive, in whatever
container it runs.

A folder's mtime says when it was last used: that of an entry and of a `partial` folder is set at each use, and
the number in a staging folder's name is the same clock when its process began. Both are set under a shared lock on
`entries`, so that `optkit.caching.trim`, which holds that lock alone, never takes what a living process has used.

Behind the folder there may be an `optkit.caching.remote`: what is not here is fetched from there and put here, what is
made here is put there. An empty file `at-XXXX` in an entry's folder says that the remote XXXX is known to have it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.artifact import digest_file, digest_of
from optkit.caching.archive import is_key
from optkit.caching.place import default_root, place_of
from optkit.errors import UnavailableError

if TYPE_CHECKING:
    from optkit.caching.remote import Remote

# A file written within this time of being read may change again without its mtime telling (coarse clocks).
_RACY_NS = 2_000_000_000

NEW_SECONDS = 60.0  # a folder this young may be about to be locked
ABANDONED_SECONDS = 7 * 24 * 3600.0  # where locks do not work: whoever made a folder this old is surely gone


@dataclass(frozen=True)
class Entry:
    """A stored result: JSON `data` and, in `folder`, its files."""

    key: str
    folder: Path
    data: Mapping[str, Any]


class Cache:
    """The store under `root` ($OPTKIT_CACHE, else the user's cache folder), and an opened remote one behind it.

    Raises UnavailableError if unusable. `open_cache` makes the one that a command line or the environment names.
    """

    def __init__(self, root: Path | None = None, remote: Remote | None = None) -> None:
        self.root = (root or default_root()).absolute()
        self.remote = remote
        self._own: Path | None = None
        try:
            for name in ("entries", "staging", "digests"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            self._sweep()
            shutil.rmtree(self.stage())  # whether it can be written to is told now, not after an hour's work
        except OSError as error:
            raise UnavailableError(
                f"the cache folder {self.root} cannot be used: {error.strerror or error}",
                hint="name another with --cache DIR or OPTKIT_CACHE",
                code="OPK-405",
            ) from error

    def _sweep(self) -> None:
        """Delete what dead processes left in staging."""
        for folder in (self.root / "staging").iterdir():
            with contextlib.suppress(OSError):  # somebody else sweeps it, or it is not ours to delete
                age = time.time() - folder.stat().st_mtime
                lock = lock_folder(folder) if age > NEW_SECONDS else None
                if lock is not None and (lock != UNKNOWN or age > ABANDONED_SECONDS):
                    shutil.rmtree(folder, ignore_errors=True)
                unlock_folder(lock)

    def _folder(self, key: str) -> Path:
        return self.root / "entries" / _safe(key)[:2] / key

    def get(self, key: str, *, shared: bool = True) -> Entry | None:
        """The entry under `key`, or None. An entry whose files do not match their record is deleted.

        shared: whether it may come from, and go to, the remote cache; not where it is about this machine's folders.
        Raises UnavailableError where that fails and is not optional.
        """
        folder = self._folder(key)
        with guard(self.root, exclusive=False):
            found = self._get(key, folder)
        if self.remote is None or not shared:
            return found
        if found is None:
            return self._fetch(key, self.remote)
        self._offer(key, self.remote)
        return found

    def _fetch(self, key: str, remote: Remote) -> Entry | None:
        """The entry that the remote cache has, put here; None where it has none that is whole."""
        from optkit.caching.archive import DamagedError, unpack

        with self.scratch() as folder:
            archive = folder / "archive"
            if not remote.fetch(key, archive):
                return None
            try:
                data, digests = unpack(archive, key, folder / "files")
            except DamagedError as error:
                remote.reject(key, str(error))
                return None
            archive.unlink()
            entry = self._store(key, data, folder / "files", digests)
            self._mark(key, remote)
            return entry

    def _offer(self, key: str, remote: Remote) -> None:
        """Give an entry to the remote cache, in the background, unless it is known to be there."""
        from optkit.caching.remote import Upload

        if not self._at(key, remote).exists():
            remote.offer(Upload(key, self._folder(key), self.scratch, lambda: self._mark(key, remote)))

    def _mark(self, key: str, remote: Remote) -> None:
        with contextlib.suppress(OSError):  # without it, the remote is asked again the next time
            self._at(key, remote).touch()

    def _at(self, key: str, remote: Remote) -> Path:
        return self._folder(key) / f"at-{digest_of(remote.url)[:16]}"

    def _get(self, key: str, folder: Path) -> Entry | None:
        try:
            record = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
            files, data = record["files"], record["data"]
            if record["key"] == key and all(_matches(folder / "files" / n, was) for n, was in files.items()):
                with contextlib.suppress(OSError):  # another's entry: whoever may delete it sees to its age
                    os.utime(folder)
                return Entry(key, folder / "files", data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            if not folder.exists():
                return None
        self._discard(folder)
        return None

    def _discard(self, folder: Path) -> None:
        """Delete an entry, all of it at once for whoever looks."""
        try:
            folder.rename(gone := self.stage() / "entry")
            shutil.rmtree(gone.parent, ignore_errors=True)
        except OSError:  # somebody else was faster
            shutil.rmtree(folder, ignore_errors=True)

    def stage(self) -> Path:
        """A new empty folder to make a result in; give it to `put`, or remove it."""
        if self._own is None or not self._own.is_dir():
            unborn = self.root / "staging" / uuid.uuid4().hex[:16]
            with guard(self.root, exclusive=False):
                unborn.mkdir()
                self._own = unborn.rename(f"{unborn}-{unborn.stat().st_mtime_ns}")
            weakref.finalize(self, _close, self._own, lock_folder(self._own), os.getpid())
        folder = self._own / uuid.uuid4().hex[:16]
        folder.mkdir()
        return folder

    def partial(self, key: str) -> Path:
        """The folder, made where it is missing, in which an unfinished result keeps its checkpoints beyond the run."""
        folder = self.root / "partial" / _safe(key)
        with guard(self.root, exclusive=False):
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder)
        return folder

    def drop_partial(self, key: str) -> None:
        """Remove the checkpoints of a result that is finished."""
        shutil.rmtree(self.root / "partial" / _safe(key), ignore_errors=True)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder to work in. It is gone afterwards, or, after a kill, when the next run sweeps."""
        folder = self.stage()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put(
        self,
        key: str,
        data: Mapping[str, Any],
        staged: Path | None = None,
        digests: Mapping[str, str] | None = None,
        *,
        shared: bool = True,
    ) -> Entry:
        """Store `data`, and the files in `staged` (which is consumed), under `key`.

        `digests` gives the sha256 of files whose maker has computed it already; shared: as for `get`. Raises OSError
        when the disk is full; nothing is left behind then.
        """
        entry = self._store(key, data, staged, digests)
        if self.remote is not None and shared:
            self._offer(key, self.remote)
        return entry

    def _store(
        self, key: str, data: Mapping[str, Any], staged: Path | None, digests: Mapping[str, str] | None
    ) -> Entry:
        making: Path | None = None
        try:
            making = self.stage()
            inside = making / "files"
            if staged is not None:
                staged.rename(inside)
            else:
                inside.mkdir()
            names = sorted(p.relative_to(inside).as_posix() for p in inside.rglob("*") if p.is_file())
            files = {name: _record(inside / name, (digests or {}).get(name)) for name in names}
            record = {"key": key, "files": files, "data": data}
            (making / "entry.json").write_text(json.dumps(record, allow_nan=False), encoding="utf-8")
            folder = self._folder(key)
            folder.parent.mkdir(exist_ok=True)
            for attempt in range(3):
                try:
                    making.rename(folder)
                    break
                except OSError:
                    # Somebody else was first; a damaged entry in the way is deleted here.
                    winner = self.get(key, shared=False)
                    if winner is not None:
                        return winner
                    if attempt == 2:
                        raise
            return Entry(key, folder / "files", data)
        finally:
            for left in (making, staged):
                if left is not None:
                    shutil.rmtree(left, ignore_errors=True)

    def settle(self) -> None:
        """Wait until what was made is in the remote cache too. Raises UnavailableError where that failed."""
        if self.remote is not None:
            self.remote.settle()

    def notices(self) -> list[str]:
        """What is to be told of the remote cache since the last call."""
        return self.remote.taken_notices() if self.remote is not None else []

    def traffic(self) -> str:
        """What came from the remote cache and went to it, as a sentence; "" without one."""
        return self.remote.summary() if self.remote is not None else ""

    def digest(self, path: Path, *, known_only: bool = False) -> str | None:
        """sha256 (hex) of a file, from memory while its size, mtime and inode are as they were.

        With `known_only`, None instead of reading a file of over 64 MiB. Raises OSError when it cannot be read.
        """
        now = time.time_ns()
        stat = path.stat()
        mark = [str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ino]
        name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()
        memo = self.root / "digests" / name[:2] / f"{name}.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(memo.read_text(encoding="utf-8"))
            if known["mark"] == mark and len(bytes.fromhex(known["digest"])) == 32:
                return str(known["digest"])
        if known_only and stat.st_size > 64 << 20:
            return None
        digest = digest_file(path)
        if now - stat.st_mtime_ns > _RACY_NS:
            temporary = memo.with_suffix(f".{uuid.uuid4().hex[:12]}.tmp")
            with contextlib.suppress(OSError):  # without it, the file is read again the next time
                memo.parent.mkdir(exist_ok=True)
                temporary.write_text(json.dumps({"mark": mark, "digest": digest}), encoding="utf-8")
                temporary.replace(memo)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
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


def open_cache(given: str | Path | None = None) -> Cache:
    """The cache of a `--cache`, a folder or a URL, completed by the environment as `optkit.caching.place` says.

    Raises UserError, and UnavailableError for a folder or a URL that cannot be used.
    """
    place = place_of(given)
    remote = None
    if place.remote is not None:
        from optkit.caching.remote import Remote

        remote = Remote(place.remote, place.modes).open()
    return Cache(place.root, remote)


def _safe(key: str) -> str:
    """The key, which becomes part of a path. Raises ValueError for what no digest is."""
    if not is_key(key):
        raise ValueError(f"{key!r} is no key")
    return key


@contextlib.contextmanager
def guard(root: Path, *, exclusive: bool) -> Iterator[None]:
    """Hold the lock between uses of entries and their removal; without it where the file system has no locks."""
    handle: int | None = None
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        handle = os.open(root / "entries", os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


UNKNOWN = -1
"""Stands for a lock on a file system that has none."""


def lock_folder(folder: Path) -> int | None:
    """The descriptor of an exclusive lock on a folder; None when another process holds it, UNKNOWN without locks."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, PermissionError):
        return UNKNOWN
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return handle
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:
        os.close(handle)
        return UNKNOWN


def unlock_folder(lock: int | None) -> None:
    """Give up what `lock_folder` returned."""
    if lock is not None and lock != UNKNOWN:
        os.close(lock)


def _close(folder: Path, lock: int | None, pid: int) -> None:
    """Give a staging folder up: at the end of its Cache, or of the process; a fork of that has no say."""
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)
        unlock_folder(lock)


def _record(path: Path, sha256: str | None) -> dict[str, Any]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256 or digest_file(path)}


def _matches(path: Path, was: Mapping[str, Any]) -> bool:
    stat = path.stat()
    if stat.st_size != was["size"]:
        return False
    # A touched file is read again; an untouched one is believed, so that a 3 GB entry costs one stat.
    return bool(stat.st_mtime_ns == was["mtime_ns"] or digest_file(path) == was["sha256"])
