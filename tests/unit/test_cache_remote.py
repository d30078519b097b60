"""The cache behind the cache: what comes from it and goes to it, damage, trouble, writers at once, and its settings."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem

from optkit.cache import Cache
from optkit.caching import remote as cache_remote
from optkit.caching.archive import DamagedError, pack, unpack
from optkit.caching.remote import Remote
from optkit.cli import cli
from optkit.errors import UnavailableError, UserError

KEY, OTHER = "ab" * 32, "cd" * 32
DATA = {"n": 1, "text": "ä"}


class Flaky(MemoryFileSystem):
    """Fails each operation in `fails` that many times, and says a secret while it does."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    fails: ClassVar[dict[str, int]] = {}
    calls: ClassVar[list[str]] = []

    def _fail(self, name: str) -> None:
        self.calls.append(name)
        if self.fails.get(name, 0) > 0:
            self.fails[name] -= 1
            raise RuntimeError("503 from user:secret@host")  # as some clients do: no OSError

    def info(self, path: str, **kwargs: Any) -> Any:
        self._fail("info")
        return super().info(path, **kwargs)

    def get_file(self, *arguments: Any, **kwargs: Any) -> Any:
        self._fail("get_file")
        return super().get_file(*arguments, **kwargs)

    def put_file(self, *arguments: Any, **kwargs: Any) -> Any:
        self._fail("put_file")
        return super().put_file(*arguments, **kwargs)

    def pipe_file(self, *arguments: Any, **kwargs: Any) -> Any:
        self._fail("pipe_file")
        return super().pipe_file(*arguments, **kwargs)


fsspec.register_implementation("flaky", Flaky, clobber=True)


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache named by the environment; short pauses; nothing left in the flaky store."""
    for name in ("OPTKIT_CACHE", "OPTKIT_CACHE_REMOTE", "OPTKIT_CACHE_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cache_remote, "PAUSE_SECONDS", 0.001)
    for held in (Flaky.store, Flaky.fails, Flaky.calls):
        held.clear()


@pytest.fixture(params=["memory", "file", "flaky"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store that is not made yet."""
    return f"file://{tmp_path}/far/away" if request.param == "file" else f"{request.param}://{uuid.uuid4().hex}/a"


def machine(tmp_path: Path, name: str, url: str, *modes: str) -> Cache:
    """A machine's cache, with the remote one behind it."""
    return Cache(tmp_path / name, Remote(url, frozenset(modes)).open())


def filled(cache: Cache, key: str = KEY, text: str = "weights") -> Cache:
    folder = cache.stage()
    (folder / "inner").mkdir()
    (folder / "model").write_text(text)
    (folder / "inner/more").write_text("more")
    cache.put(key, DATA, folder)
    return cache


def far(url: str) -> list[str]:
    """The files in a store, from its base."""
    fs, base = fsspec.core.url_to_fs(url)
    return sorted(path.partition(base.strip("/"))[2].strip("/") for path in fs.find(base))


def change(url: str, how: Callable[[bytes], bytes], key: str = KEY) -> None:
    """Change an archive in a store."""
    fs, base = fsspec.core.url_to_fs(url)
    path = f"{base}/entries/{key[:2]}/{key}.zip"
    fs.pipe_file(path, how(fs.cat_file(path)))


# ------------------------------------------------------------------------------------------------ what it is for


def test_what_one_machine_made_another_one_gets(url: str, tmp_path: Path) -> None:
    one = filled(machine(tmp_path, "one", url))
    one.settle()
    assert far(url) == [f"entries/ab/{KEY}.zip", "optkit-cache.json"]
    two = machine(tmp_path, "two", url)
    got = two.get(KEY)
    assert got is not None
    assert (got.data, (got.folder / "model").read_text(), (got.folder / "inner/more").read_text()) == (
        DATA, "weights", "more")  # fmt: skip
    assert got.folder == tmp_path / "two/entries/ab" / KEY / "files"
    assert two.get(OTHER) is None
    two.settle()
    assert (two.remote.traffic.fetched, two.remote.traffic.uploaded) == (1, 0)
    assert "1 fetched" in two.traffic()
    assert one.notices() == two.notices() == []
    assert Cache(tmp_path / "two").get(KEY) == got, "it is here now, with no remote cache"
    assert not [p for c in (one, two) for p in (c.root / "staging").rglob("*") if p.is_file()]


def test_what_was_here_before_there_was_a_remote_cache_goes_there(url: str, tmp_path: Path) -> None:
    filled(Cache(tmp_path / "one"))
    one = machine(tmp_path, "one", url)
    one.get(KEY)
    one.settle()
    assert far(url) == [f"entries/ab/{KEY}.zip", "optkit-cache.json"]
    again = machine(tmp_path, "one", url)
    Flaky.calls.clear()
    again.get(KEY)
    again.settle()
    assert Flaky.calls == [], "what is known to be there is not asked for again"
    assert again.remote.traffic.uploaded == 0


def test_what_is_about_this_machine_stays_here(url: str, tmp_path: Path) -> None:
    one = machine(tmp_path, "one", url)
    one.put(KEY, {"path": "/home/me"}, shared=False)
    one.get(KEY, shared=False)
    one.partial(OTHER).joinpath("step-1").write_text("a checkpoint")
    one.settle()
    assert far(url) == ["optkit-cache.json"]


def test_a_miss_is_asked_for_once(tmp_path: Path) -> None:
    cache = machine(tmp_path, "one", "flaky://misses")
    for _ in range(5):
        assert cache.get(KEY) is None
    assert Flaky.calls.count("get_file") == 1


def test_a_run_that_only_reads_leaves_no_trace(url: str, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="there is none there yet"):
        machine(tmp_path, "two", url, "read-only")
    filled(machine(tmp_path, "one", url)).settle()
    before = far(url)
    two = machine(tmp_path, "two", url, "read-only")
    assert two.get(KEY) is not None
    filled(two, OTHER).settle()
    assert far(url) == before


# ------------------------------------------------------------------------------------------------ damage


def archive(record: Any, **files: str) -> Callable[[bytes], bytes]:
    """Another archive in the place of one."""

    def make(before: bytes) -> bytes:
        import io

        kept = io.BytesIO()
        with zipfile.ZipFile(kept, "w") as made:
            made.writestr("entry.json", record if isinstance(record, str) else json.dumps(record))
            for name, text in files.items():
                made.writestr(f"files/{name}", text)
        return kept.getvalue()

    return make


def flipped(at: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(at, bytes([at[0] ^ 1]) + at[1:], 1)


EMPTY = {"size": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "half an upload": lambda data: data[: len(data) // 2],
    "all but the last byte": lambda data: data[:-1],
    "an empty file": lambda data: b"",
    "no archive": lambda data: b"<html>Sign in to the proxy</html>",
    "a flipped bit of a file": flipped(b"weights"),
    "a flipped bit of the record": flipped(b'"data"'),
    "another result's": archive({"key": OTHER, "files": {}, "data": {}}),
    "other bytes of a file": archive({"key": KEY, "files": {"a": EMPTY}, "data": {}}, a="x"),
    "a file gone": archive({"key": KEY, "files": {"a": EMPTY}, "data": {}}),
    "a way up": archive({"key": KEY, "files": {"../evil": EMPTY}, "data": {}}, **{"../evil": ""}),
    "an absolute path": archive({"key": KEY, "files": {"/evil": EMPTY}, "data": {}}, **{"/evil": ""}),
    "a way up for Windows": archive({"key": KEY, "files": {"..\\evil": EMPTY}, "data": {}}, **{"..\\evil": ""}),
    "a drive": archive({"key": KEY, "files": {"c:evil": EMPTY}, "data": {}}, **{"c:evil": ""}),
    "a file with no name": archive({"key": KEY, "files": {".": EMPTY}, "data": {}}, **{".": ""}),
    "a file in a file": archive({"key": KEY, "files": {"a": EMPTY, "a/b": EMPTY}, "data": {}}, **{"a": "", "a/b": ""}),
    "a record that is a list": archive([1]),
    "data that is a list": archive({"key": KEY, "files": {}, "data": [1]}),
    "a record that is no JSON": archive("{"),
    "a file without a size": archive({"key": KEY, "files": {"a": {}}, "data": {}}, a=""),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_damaged_there_is_told_not_used_and_replaced(what: str, tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    filled(machine(tmp_path, "one", url)).settle()
    change(url, DAMAGE[what])
    two = machine(tmp_path, "two", url)
    assert two.get(KEY) is None
    (notice,) = two.notices()
    assert "is damaged and not used" in notice
    assert two.notices() == []
    assert two.get(KEY) is None
    assert two.notices() == [], "it is told once"
    assert not list(tmp_path.rglob("*evil*"))
    filled(two).settle()
    three = machine(tmp_path, "three", url)
    assert three.get(KEY) is not None, "it was replaced"
    assert "1 damaged" in two.traffic()


def test_an_archive_whose_record_is_a_bomb_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optkit.caching.archive._RECORD_LIMIT_BYTES", 1000)
    (tmp_path / "a.zip").write_bytes(archive({"key": KEY, "files": {}, "data": {"a": "x" * 2000}})(b""))
    with pytest.raises(DamagedError, match="too long"):
        unpack(tmp_path / "a.zip", KEY, tmp_path / "out")


def test_equal_entries_make_equal_archives(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        entry = filled(Cache(tmp_path / name)).get(KEY)
        assert entry is not None
        os.utime(entry.folder / "model", (1, 1))
        pack(entry.folder.parent, tmp_path / f"{name}.zip")
        made.append((tmp_path / f"{name}.zip").read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("key", ["../../etc/passwd", "", "ab", "AB" * 32, "ab" * 31 + "/a", KEY + "\n"])
def test_a_key_that_is_none_leads_nowhere(key: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for use in (cache.get, cache.partial, cache.drop_partial, lambda key: cache.put(key, {})):
        with pytest.raises(ValueError, match="is no key"):
            use(key)


# ------------------------------------------------------------------------------------------------ trouble


def test_what_fails_is_tried_again(tmp_path: Path) -> None:
    Flaky.fails.update(info=2, put_file=2, get_file=2)
    filled(machine(tmp_path, "one", "flaky://again")).settle()
    two = machine(tmp_path, "two", "flaky://again")
    assert two.get(KEY) is not None
    assert two.notices() == []


@pytest.mark.parametrize("operation", ["pipe_file", "get_file", "put_file", "info"])
def test_what_goes_on_failing_fails_the_run_by_name(operation: str, tmp_path: Path) -> None:
    Flaky.fails[operation] = 10**6

    def work() -> None:
        filled(Cache(tmp_path / "one"))
        cache = machine(tmp_path, "one", "flaky://user:secret@store")
        cache.get(KEY)
        cache.get(OTHER)
        filled(cache, OTHER)
        cache.settle()

    with pytest.raises(UnavailableError, match=r"flaky://user:\*\*\*@store cannot be read and written: 503") as caught:
        work()
    assert caught.value.code == "OPK-409"
    assert "secret@store" not in str(caught.value)
    if operation == "put_file":
        assert not [name for name in far("flaky://user:secret@store") if "entries" in name], "nothing half is left"


@pytest.mark.parametrize("operation", ["pipe_file", "get_file", "put_file"])
def test_optional_goes_on_without_it_and_says_so_once(operation: str, tmp_path: Path) -> None:
    Flaky.fails[operation] = 10**6
    cache = machine(tmp_path, "one", "flaky://store", "optional")
    assert cache.get(KEY) is None
    assert cache.get(OTHER) is None
    filled(filled(cache), OTHER).settle()
    assert cache.get(KEY) is not None
    (notice,) = cache.notices()
    assert notice.endswith("503 from user:secret@host; going on without it")
    assert Flaky.calls.count(operation) <= 3 * 2, "it is not asked again and again"


def test_a_store_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_remote, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(Flaky, "pipe_file", lambda *arguments, **options: time.sleep(1))
    with pytest.raises(UnavailableError, match=r"no answer within 0.1 s"):
        machine(tmp_path, "one", "flaky://silent")


def test_a_full_disk_here_is_no_trouble_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    filled(machine(tmp_path, "one", "flaky://full")).settle()

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Flaky, "get_file", full)
    with pytest.raises(OSError, match="No space left"):
        machine(tmp_path, "two", "flaky://full").get(KEY)


def test_a_cache_of_another_layout_is_refused(tmp_path: Path) -> None:
    fs, base = fsspec.core.url_to_fs("memory://layout")
    fs.pipe_file(f"{base}/optkit-cache.json", b'{"layout": 99}')
    with pytest.raises(UserError, match="of another version of optkit"):
        Remote("memory://layout", frozenset({"read-only"})).open()
    with pytest.raises(UserError, match="of another version of optkit"):
        Remote("memory://layout").open()
    assert fs.cat_file(f"{base}/optkit-cache.json") == b'{"layout": 99}'


# ------------------------------------------------------------------------------------------------ writers at once


def test_many_writers_and_readers_of_one_key_see_it_whole_or_not_at_all(tmp_path: Path) -> None:
    """In a folder: the files of fsspec's memory have one position for all who read them, and get mixed up."""
    url = f"file://{tmp_path}/far"
    wrong: list[str] = []
    stop = time.monotonic() + 1.5

    def work(number: int) -> None:
        turn = 0
        while time.monotonic() < stop:
            cache = machine(tmp_path, f"{number}-{turn}", url)
            entry = cache.get(KEY)
            text = str(number) * 200_000
            if entry is None:
                filled(cache, KEY, text)
            elif len(set((entry.folder / "model").read_text())) != 1:
                wrong.append("mixed")
            cache.settle()
            wrong.extend(cache.notices())
            if turn % 3 == 2 and number == 0:  # as a store's own expiry does
                fs, base = fsspec.core.url_to_fs(url)
                with contextlib.suppress(FileNotFoundError):
                    fs.rm_file(f"{base}/entries/ab/{KEY}.zip")
            turn += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert not [name for name in far(url) if name.endswith(".tmp")]


# ------------------------------------------------------------------------------------------------ where it is


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "one"))
    return lambda *arguments: CliRunner().invoke(cli, ["cache", *arguments])


def test_info_and_trim_with_a_remote_cache(url: str, tmp_path: Path, command: Callable[..., Any]) -> None:
    filled(filled(machine(tmp_path, "one", url)), OTHER).settle()
    held = json.loads(command("info", "--cache", url, "--json").stdout)
    assert held["remote"]["results"] == held["results"] == 2
    assert held["remote"]["result_bytes"] > 0
    said = command("info", "--cache", url)
    assert url in said.stdout
    trimmed = command("trim", "--to", "0", "--cache", url)
    assert f"{url} is left as it is" in trimmed.stderr
    assert json.loads(command("info", "--cache", url, "--json").stdout)["results"] == 0
    assert machine(tmp_path, "one", url).get(KEY) is not None, "from the remote cache, where nothing was trimmed"


def test_info_makes_nothing_where_nothing_is(tmp_path: Path, command: Callable[..., Any]) -> None:
    said = command("info", "--cache", f"file://{tmp_path}/none")
    assert (said.exit_code, "not reached" in said.stdout) == (4, True)
    assert not (tmp_path / "none").exists()
