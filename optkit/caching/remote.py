"""A cache behind the cache: one archive per entry at any URL that fsspec reads, shared by machines that never meet.

    URL/optkit-cache.json            says that this is one, and that it can be reached and written to
    URL/entries/ab/abcd....zip       an entry, as optkit.caching.archive writes it

Several may write at once. An archive appears whole: object stores show an upload once it is complete, everywhere
else it is uploaded under another name and moved. Of two writers of one key the last wins; a key says all that decides a
result, so both are right. What a reader gets is proven before it is used; it never removes anything.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from optkit.caching.archive import pack
from optkit.caching.place import OPTIONAL, READ_ONLY, shown
from optkit.disk import FULL
from optkit.errors import OptkitError, UnavailableError, UserError, did_you_mean
from optkit.plugin import install_line, need

MARK, _LAYOUT = "optkit-cache.json", 1

ANSWER_SECONDS = 60.0
"""How long the first answer may take. A store that is not there can keep one waiting for many minutes."""

ATTEMPTS, PAUSE_SECONDS = 3, 0.3
UPLOADS = 4

_WHOLE_UPLOADS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci"}
"""Stores where an upload that ends early leaves nothing to be seen, and where moving means copying."""

T = TypeVar("T")


@dataclass
class Traffic:
    """What a run took from the remote cache, gave to it, and found damaged there."""

    fetched: int = 0
    fetched_bytes: int = 0
    uploaded: int = 0
    uploaded_bytes: int = 0
    damaged: int = 0


@dataclass(frozen=True)
class Upload:
    """An entry to be uploaded: its folder, where to make its archive, and what to call once it is there."""

    key: str
    entry: Path
    scratch: Callable[[], AbstractContextManager[Path]]
    done: Callable[[], object]


@dataclass
class Remote:
    """The cache at `url`, used as `modes` says (see `optkit.caching.place.MODES`).

    `open` it first. Where it fails later, and is not optional, UnavailableError is raised by whoever asks for something
    next, at the latest by `settle`. notices: sentences for people, taken away by whoever shows them.
    """

    url: str
    modes: frozenset[str] = frozenset()
    traffic: Traffic = field(default_factory=Traffic)
    notices: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = shown(self.url)
        self._fs: Any = None
        self._base = ""
        self._trouble: UnavailableError | None = None
        self._absent: set[str] = set()
        self._wrong: set[str] = set()
        self._offered: set[str] = set()
        self._lock = threading.Lock()
        self._turn: AbstractContextManager[object] = contextlib.nullcontext()
        self._queue: queue.Queue[Upload | None] | None = None

    @property
    def usable(self) -> bool:
        """Whether it is still asked for anything; False after trouble with one that is optional."""
        return self._fs is not None and self._trouble is None

    def open(self) -> Remote:
        """Reach it, and, unless it is only read, write to it. Raises UserError and UnavailableError."""
        answer: list[OptkitError | None] = []
        # In a thread that nobody waits for at the end: a connection attempt cannot be called off.
        thread = threading.Thread(target=lambda: answer.append(self._first()), daemon=True)
        thread.start()
        thread.join(ANSWER_SECONDS)
        error = answer[0] if answer else self._unreachable(f"no answer within {ANSWER_SECONDS:g} s")
        if error is not None:
            if OPTIONAL not in self.modes or not isinstance(error, UnavailableError) or error.code != "OPK-409":
                raise error
            self._give_up(error)
        return self

    def _first(self) -> OptkitError | None:
        try:
            fs, self._base = connect(self.url)
            if not (getattr(fs, "async_impl", False) or _protocol(fs) in ("file", "local")):
                self._turn = threading.Lock()  # one connection, as of FTP, which takes one question at a time
            mark = f"{self._base}/{MARK}"
            mine = json.dumps({"layout": _LAYOUT}).encode()
            try:
                read = self._try(lambda: fs.cat_file(mark))
            except FileNotFoundError:
                if READ_ONLY in self.modes:
                    raise
                read = mine
            if read != mine:
                what = f"the remote cache {self.name} is of another version of optkit, or no cache of optkit's"
                return UserError(what, hint="name another URL", code="OPK-203")
            if READ_ONLY not in self.modes:  # each time: whether it may be written to is told now, not after the work
                self._try(lambda: self._place(fs, mark, lambda to: fs.pipe_file(to, mine)))
            self._fs = fs
        except OptkitError as error:
            return error
        except FileNotFoundError as error:
            none = "there is none there yet; the first run that may write makes it"
            return self._unreachable(none if READ_ONLY in self.modes else self._said(error))
        except Exception as error:  # whatever a store's client raises: most are no OSError
            return self._unreachable(self._said(error))
        return None

    def _said(self, error: BaseException) -> str:
        """What an error says, with no password of the URL in it."""
        text = " ".join(str(error).split()) or type(error).__name__
        return text.replace(self.url, self.name)[:500]

    def _unreachable(self, why: str) -> UnavailableError:
        wanted = "read" if READ_ONLY in self.modes else "read and written"
        return UnavailableError(
            f"the remote cache {self.name} cannot be {wanted}: {why}",
            hint="mend the URL or its credentials; OPTKIT_CACHE_MODE=read-only for one that may not be written, "
            "OPTKIT_CACHE_MODE=optional to go on without it",
            code="OPK-409",
        )

    def _give_up(self, error: UnavailableError) -> None:
        """After trouble: it is not asked again, and, where it is optional, that is told."""
        with self._lock:
            if self._trouble is None:
                self._trouble = error
                if OPTIONAL in self.modes:
                    self.notices.append(f"{error.what}; going on without it")

    def _check(self) -> bool:
        """Whether it may be used. Raises UnavailableError after trouble, unless it is optional."""
        if self._trouble is not None and OPTIONAL not in self.modes:
            raise self._trouble
        return self.usable

    def _try(self, work: Callable[[], T]) -> T:
        """Do something with the store, again where it fails. FileNotFoundError and a full disk here are answers."""
        for attempt in range(ATTEMPTS):
            try:
                with self._turn:
                    return work()
            except FileNotFoundError:
                raise
            except Exception as error:
                if isinstance(error, OSError) and error.errno in FULL:
                    raise
                if attempt == ATTEMPTS - 1:
                    raise self._unreachable(self._said(error)) from error
                time.sleep(PAUSE_SECONDS * 4**attempt)
        raise AssertionError

    def _path(self, key: str) -> str:
        return f"{self._base}/entries/{key[:2]}/{key}.zip"

    def fetch(self, key: str, to: Path) -> bool:
        """Download an entry's archive to the file `to`; False where there is none, or none known to be whole.

        What was not there is not asked for again: who makes it next is most likely this run. Raises UnavailableError.
        """
        if key in self._absent or key in self._wrong or not self._check():
            return False
        try:
            self._try(lambda: self._fs.get_file(self._path(key), str(to)))
        except FileNotFoundError:
            self._absent.add(key)
            return False
        except UnavailableError as error:
            self._give_up(error)
            return self._check()
        self._offered.add(key)
        self.traffic.fetched += 1
        self.traffic.fetched_bytes += to.stat().st_size
        return True

    def reject(self, key: str, why: str) -> None:
        """What was fetched is damaged: tell it, never ask for it again, and replace it by what this run makes."""
        self._wrong.add(key)
        self._offered.discard(key)
        self.traffic.fetched -= 1
        self.traffic.damaged += 1
        self.notices.append(f"the entry {key[:12]} in the remote cache {self.name} is damaged and not used: {why}")

    def offer(self, upload: Upload) -> None:
        """Upload an entry in the background, unless it is there. Raises UnavailableError after trouble."""
        if READ_ONLY in self.modes or upload.key in self._offered or not self._check():
            return
        self._offered.add(upload.key)
        if self._queue is None:
            self._queue = queue.Queue()
            for _ in range(UPLOADS):  # daemons: an interrupt does not wait for an upload
                threading.Thread(target=self._upload, args=(self._queue,), daemon=True).start()
        self._queue.put(upload)

    def _upload(self, waiting: queue.Queue[Upload | None]) -> None:
        while True:
            upload = waiting.get()
            try:
                if upload is None:
                    return
                if self.usable:
                    self._send(upload)
                    upload.done()
            except UnavailableError as error:
                self._give_up(error)
            except Exception as error:  # of this machine, such as a full disk
                self._give_up(self._unreachable(f"an archive for it could not be made: {error}"))
            finally:
                upload = None  # it holds its cache, which one that waits for more would keep open
                waiting.task_done()

    def _send(self, upload: Upload) -> None:
        path = self._path(upload.key)
        if upload.key not in self._absent and upload.key not in self._wrong:
            with contextlib.suppress(FileNotFoundError):
                self._try(lambda: self._fs.info(path))
                return
        with upload.scratch() as folder:
            archive = folder / "archive"
            pack(upload.entry, archive)
            self._try(lambda: self._place(self._fs, path, lambda to: self._fs.put_file(str(archive), to)))
            with self._lock:
                self.traffic.uploaded += 1
                self.traffic.uploaded_bytes += archive.stat().st_size

    def _place(self, fs: Any, path: str, write: Callable[[str], object]) -> None:
        """Write a file so that nobody sees half of it."""
        if _protocol(fs) in _WHOLE_UPLOADS:
            write(path)
            return
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        unborn = f"{path}.{uuid.uuid4().hex[:12]}.tmp"
        try:
            write(unborn)
            try:
                fs.mv(unborn, path)
            except Exception:  # some servers do not rename over a file that is there
                fs.info(path)
                with contextlib.suppress(FileNotFoundError):  # another writer does the same
                    fs.rm_file(path)
                fs.mv(unborn, path)
        except Exception:
            with contextlib.suppress(Exception):
                fs.rm_file(unborn)
            raise

    def settle(self) -> None:
        """Wait for the uploads. Raises UnavailableError where one failed, unless it is optional."""
        if self._queue is not None:
            self._queue.join()
            for _ in range(UPLOADS):
                self._queue.put(None)
            self._queue = None
        self._check()

    def taken_notices(self) -> list[str]:
        """The notices since the last call."""
        with self._lock:
            taken, self.notices[:] = list(self.notices), []
        return taken

    def summary(self) -> str:
        """What was fetched and uploaded, in words; "" where it was never reached."""
        if self._fs is None:
            return ""
        t = self.traffic
        fetched = f"{t.fetched} fetched ({t.fetched_bytes / 1e6:.1f} MB)"
        uploaded = "" if READ_ONLY in self.modes else f", {t.uploaded} uploaded ({t.uploaded_bytes / 1e6:.1f} MB)"
        damaged = f", {t.damaged} damaged" if t.damaged else ""
        return f"{self.name}: {fetched}{uploaded}{damaged}"

    def holdings(self) -> tuple[int, int | None]:
        """How many entries it has, and their bytes where its list tells. Raises UnavailableError."""
        try:
            found = self._try(lambda: self._fs.find(f"{self._base}/entries", detail=True))
        except FileNotFoundError:
            return 0, 0
        sizes = [info.get("size") for name, info in found.items() if name.endswith(".zip")]
        return len(sizes), None if None in sizes else sum(sizes)


def _protocol(fs: Any) -> str:
    return str(fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0])


def connect(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Raises UserError for an unknown kind, UnavailableError."""
    fsspec = need("fsspec")
    protocol = url.partition("://")[0].partition("::")[0]
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        said = str(error).strip() or f"{protocol}:// needs a package that is not installed"
        hint = f"install that package beside fsspec {fsspec.__version__}, in the same version where it has one"
        raise UnavailableError(f"the remote cache {shown(url)}: {said}", hint=hint, code="OPK-401") from error
    except ValueError as error:
        if "Protocol not known" not in str(error):
            raise
        hint = did_you_mean(protocol, fsspec.available_protocols(), listing=False) or install_line("s3fs")
        raise UserError(f"{shown(url)}: fsspec knows no {protocol}://", hint=hint, code="OPK-203") from error
    return fs, str(path).rstrip("/")
