"""The store: hits, misses, damage, races, kills, full disks, and the memory of digests."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from optkit.cache import Cache, Entry, default_root
from optkit.errors import UnavailableError

KEY = "ab" * 32
OTHER = "cd" * 32


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def staged(cache: Cache, **files: str) -> Path:
    folder = cache.stage()
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def filled(cache: Cache, key: str = KEY) -> Entry:
    return cache.put(key, {"n": 1, "text": "ä"}, staged(cache, model="weights", inner__more="more"))


def left_in(cache: Cache) -> list[Path]:
    """Files in staging; none after anything."""
    return [path for path in (cache.root / "staging").rglob("*") if path.is_file()]


def test_what_was_put_is_found_by_its_key_alone(cache: Cache) -> None:
    assert cache.get(KEY) is None
    folder = staged(cache, model="weights", inner__more="more")
    put = cache.put(KEY, {"n": 1, "text": "ä"}, folder)
    assert not folder.exists()
    got = cache.get(KEY)
    assert got == put == Entry(KEY, cache.root / "entries/ab" / KEY / "files", {"n": 1, "text": "ä"})
    assert (got.folder / "inner/more").read_text(encoding="utf-8") == "more"
    assert cache.get(OTHER) is None
    assert Cache(cache.root).get(KEY) == put
    assert left_in(cache) == []


def test_an_entry_without_files(cache: Cache) -> None:
    entry = cache.put(KEY, {"cases": []})
    assert entry.folder.is_dir()
    assert cache.get(KEY) == entry


def test_a_digest_that_is_known_is_not_computed_again(cache: Cache) -> None:
    entry = cache.put(KEY, {}, staged(cache, a="1", b="2"), {"a": "the maker's"})
    record = json.loads((entry.folder.parent / "entry.json").read_text(encoding="utf-8"))
    assert record["files"]["a"]["sha256"] == "the maker's"
    assert record["files"]["b"]["sha256"] == hashlib.sha256(b"2").hexdigest()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))


def record(text: str) -> Callable[[Path], object]:
    return lambda entry: (entry / "entry.json").write_text(text.replace("KEY", f'"key": "{KEY}"'), encoding="utf-8")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": lambda e: flip(e / "files/model"),
    "a file cut short": lambda e: os.truncate(e / "files/model", 3),
    "a file grown": lambda e: os.truncate(e / "files/model", 300),
    "a file gone": lambda e: (e / "files/model").unlink(),
    "a file in a folder gone": lambda e: (e / "files/inner/more").unlink(),
    "a folder in a file's place": lambda e: ((e / "files/model").unlink(), (e / "files/model").mkdir()),
    "no record": lambda e: (e / "entry.json").unlink(),
    "an empty record": record(""),
    "half a record": lambda e: os.truncate(e / "entry.json", 20),
    "another's record": record('{"key": "x", "files": {}, "data": {}}'),
    "a record that is a list": record("[1]"),
    "a record of lists": record('{KEY, "files": [1], "data": 2}'),
    "a record without sizes": record('{KEY, "files": {"model": {}}, "data": {}}'),
    "a record that is no text": lambda e: (e / "entry.json").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_entry_is_a_miss_and_is_deleted(what: str, cache: Cache) -> None:
    entry = filled(cache)
    other = filled(cache, OTHER)
    DAMAGE[what](entry.folder.parent)
    assert cache.get(KEY) is None
    assert not entry.folder.parent.exists()
    assert filled(cache) == cache.get(KEY)
    assert cache.get(OTHER) == other


def test_a_file_that_was_only_touched_is_read_again_and_believed(cache: Cache) -> None:
    entry = filled(cache)
    os.utime(entry.folder / "model", ns=(1, 1))
    assert cache.get(KEY) == entry


def test_a_damaged_entry_in_the_way_is_replaced(cache: Cache) -> None:
    entry = filled(cache)
    (entry.folder / "model").unlink()
    again = cache.put(KEY, {"n": 2}, staged(cache, model="new"))
    assert cache.get(KEY) == again
    assert (again.folder / "model").read_text(encoding="utf-8") == "new"


def test_whoever_comes_second_takes_what_is_there(cache: Cache) -> None:
    first = filled(cache)
    folder = staged(cache, model="other weights")
    second = cache.put(KEY, {"n": 2}, folder)
    assert second == first
    assert (second.folder / "model").read_text(encoding="utf-8") == "weights"
    assert not folder.exists()
    assert left_in(cache) == []


def test_writers_that_race_all_get_one_entry(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    start = threading.Barrier(8)
    found: list[tuple[str, str]] = []
    wrong: list[BaseException] = []

    def write(number: int) -> None:
        try:
            cache = Cache(root)
            start.wait()
            for turn in range(10):
                entry = cache.put(f"{turn:064d}", {"by": number}, staged(cache, model=str(number)))
                found.append((entry.key, f"{entry.data['by']} {(entry.folder / 'model').read_text(encoding='utf-8')}"))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    by_key = {key: {text for k, text in found if k == key} for key, _ in found}
    assert len(by_key) == 10
    assert all(len(texts) == 1 for texts in by_key.values())
    assert all(len(set(text.split())) == 1 for texts in by_key.values() for text in texts)


def test_processes_that_race_all_get_one_entry(tmp_path: Path) -> None:
    code = """
import sys; from pathlib import Path; from optkit.cache import Cache
cache = Cache(Path(sys.argv[1]))
for turn in range(30):
    folder = cache.stage(); (folder / "model").write_text(sys.argv[2])
    entry = cache.put(f"{turn:064d}", {"by": sys.argv[2]}, folder)
    print(turn, entry.data["by"], (entry.folder / "model").read_text())
"""
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "c"), str(n)], stdout=subprocess.PIPE, text=True)
        for n in range(3)
    ]
    told = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert told[0] == told[1] == told[2]
    assert len(told[0].splitlines()) == 30


# --- kills


def killed_while_making(root: Path) -> Path:
    """What a killed process leaves: a staged file."""
    code = """
import sys, os, signal; from pathlib import Path; from optkit.cache import Cache
cache = Cache(Path(sys.argv[1])); folder = cache.stage(); (folder / "half").write_text("half")
print(folder, flush=True); sys.stdin.readline(); os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    folder = Path(run.stdout.readline().strip())
    old = time.time() - 3600
    os.utime(folder.parent, (old, old))
    Cache(root)
    assert (folder / "half").exists(), "its maker is alive"
    run.communicate("go\n")
    assert run.returncode == -signal.SIGKILL
    os.utime(folder.parent, (old, old))
    return folder


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    folder = killed_while_making(tmp_path)
    assert (folder / "half").exists()
    Cache(tmp_path)
    assert not folder.parent.exists()


def test_a_new_folder_is_not_swept_before_its_maker_can_lock_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    (cache.root / "staging/new").mkdir()
    Cache(tmp_path)
    assert (cache.root / "staging/new").exists()


def test_a_scratch_folder_goes_with_its_block(cache: Cache) -> None:
    with cache.scratch() as folder:
        (folder / "tape").write_text("", encoding="utf-8")
        with cache.scratch() as other:
            assert other != folder
        assert not other.exists()
        assert folder.exists()
    assert not folder.exists()


def test_a_cache_that_is_given_up_leaves_no_staging(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    folder = cache.stage()
    other = Cache(tmp_path)
    assert folder.exists()
    del cache
    gc.collect()
    assert not folder.exists()
    assert other.stage().exists()


def test_the_fork_of_a_process_does_not_give_its_staging_up(tmp_path: Path) -> None:
    code = """
import os, sys; from pathlib import Path; from optkit.cache import Cache
cache = Cache(Path(sys.argv[1])); folder = cache.stage()
if os.fork() == 0: sys.exit()
os.wait(); print(folder.exists())
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert list((tmp_path / "staging").iterdir()) == []


# --- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that holds 256 kB: a file system of that size where one may mount it, else a limit on file sizes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    with contextlib.suppress(OSError):
        if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            yield folder
            subprocess.run(["umount", "-l", str(folder)], check=True)
            return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 10, before[1]))
    yield folder
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_nothing_behind(small_disk: Path) -> None:
    cache = Cache(small_disk)
    first = filled(cache)
    folder = cache.stage()
    with pytest.raises(OSError, match=r"No space left|File too large"):
        (folder / "model").write_bytes(b"x" * (512 << 10))
    (folder / "model").write_bytes(b"x" * (128 << 10))
    with pytest.raises(OSError, match=r"No space left|File too large"):
        cache.put(OTHER, {"much": "y" * (512 << 10)}, folder)
    assert not folder.exists()
    assert left_in(cache) == []
    assert cache.get(OTHER) is None
    assert cache.get(KEY) == first
    assert filled(cache, OTHER) == cache.get(OTHER)


def test_a_digest_is_told_though_it_cannot_be_kept(small_disk: Path, tmp_path: Path) -> None:
    cache = Cache(small_disk)
    path = written(tmp_path / "weights", "w")
    with contextlib.suppress(OSError):
        (small_disk / "ballast").write_bytes(b"x" * (512 << 10))
    assert cache.digest(path) == hashlib.sha256(b"w").hexdigest()
    assert cache.digest(path) == hashlib.sha256(b"w").hexdigest()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/optkit", "held/entries"])
def test_a_root_that_cannot_be_used(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "held").mkdir()
    root = tmp_path / place
    if place == "held/entries":  # a file where a folder of the cache should be
        root = tmp_path / "held"
        (root / "entries").write_text("", encoding="utf-8")
    with pytest.raises(UnavailableError, match="cannot be used") as caught:
        Cache(root)
    assert "--cache DIR" in caught.value.hint


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_root() == tmp_path / "mine"
    monkeypatch.setenv("OPTKIT_CACHE", "~/mine")
    assert default_root() == Path.home() / "mine"
    monkeypatch.setenv("OPTKIT_CACHE", "~nosuchuser/mine")
    with pytest.raises(UnavailableError, match="no place for the cache"):
        default_root()
    monkeypatch.delenv("OPTKIT_CACHE")
    assert default_root() == tmp_path / "xdg/optkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_root() == Path.home() / ".cache/optkit"


# --- digests


def written(path: Path, text: str, age: float = 60.0) -> Path:
    path.write_text(text, encoding="utf-8")
    os.utime(path, (time.time() - age,) * 2)
    return path


def memos(cache: Cache) -> list[Path]:
    return [p for p in (cache.root / "digests").rglob("*") if p.is_file()]


def test_a_digest_is_remembered_until_the_file_changes(cache: Cache, tmp_path: Path) -> None:
    path = written(tmp_path / "weights", "one")
    assert cache.digest(path) == hashlib.sha256(b"one").hexdigest()
    (memo,) = memos(cache)
    kept = json.loads(memo.read_text(encoding="utf-8"))
    memo.write_text(json.dumps({**kept, "digest": "ab" * 32}), encoding="utf-8")
    assert cache.digest(path) == "ab" * 32, "from memory"
    assert Cache(cache.root).digest(path) == "ab" * 32
    written(path, "two", age=50)
    assert cache.digest(path) == hashlib.sha256(b"two").hexdigest()


def test_a_file_replaced_by_another_of_the_same_size_and_time(cache: Cache, tmp_path: Path) -> None:
    path, other = written(tmp_path / "weights", "one"), written(tmp_path / "other", "two")
    cache.digest(path)
    os.utime(other, ns=(path.stat().st_mtime_ns,) * 2)
    other.replace(path)
    assert cache.digest(path) == hashlib.sha256(b"two").hexdigest()


def test_a_file_written_just_now_is_not_trusted(cache: Cache, tmp_path: Path) -> None:
    path = written(tmp_path / "weights", "one", age=0)
    assert cache.digest(path) == hashlib.sha256(b"one").hexdigest()
    assert memos(cache) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"mark": 1, "digest": 2}', "null"])
def test_a_damaged_memory_is_none(text: str, cache: Cache, tmp_path: Path) -> None:
    path = written(tmp_path / "weights", "one")
    cache.digest(path)
    memos(cache)[0].write_text(text, encoding="utf-8")
    assert cache.digest(path) == hashlib.sha256(b"one").hexdigest()
    (memo,) = memos(cache)
    memo.write_text(json.dumps({**json.loads(memo.read_text(encoding="utf-8")), "digest": "short"}), encoding="utf-8")
    assert cache.digest(path) == hashlib.sha256(b"one").hexdigest()


def test_a_big_file_is_only_read_when_it_may_take_time(cache: Cache, tmp_path: Path) -> None:
    big, small = tmp_path / "big", written(tmp_path / "small", "s")
    with big.open("wb") as handle:
        handle.truncate((64 << 20) + 1)
    os.utime(big, (time.time() - 60,) * 2)
    assert cache.digest(big, known_only=True) is None
    assert cache.digest_all([small, big], known_only=True) is None
    digest = cache.digest(big)
    assert digest is not None
    assert cache.digest(big, known_only=True) == digest
    assert cache.digest_all([small, big], known_only=True) == cache.digest_all([small, big])


def test_the_digest_of_several_files_depends_on_names_and_order(cache: Cache, tmp_path: Path) -> None:
    a, b = written(tmp_path / "a", "1"), written(tmp_path / "b", "2")
    (tmp_path / "c").mkdir()
    c = written(tmp_path / "c/a", "1")
    assert cache.digest_all([a, b]) == cache.digest_all([c, b])
    assert len({cache.digest_all([a, b]), cache.digest_all([b, a]), cache.digest_all([a]), cache.digest_all([])}) == 4


def test_a_file_that_is_not_there(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cache.digest(tmp_path / "nothing")


def test_a_name_that_is_no_text(cache: Cache, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    written(path, "one")
    assert cache.digest(path) == cache.digest(path) == hashlib.sha256(b"one").hexdigest()
