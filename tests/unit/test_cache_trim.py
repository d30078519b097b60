"""Trimming: what goes, what stays, and that it never takes away what a living process uses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from optkit.cache import Cache, lock_folder, unlock_folder
from optkit.caching.trim import parse_size, trim, usage
from optkit.cli import cli
from optkit.errors import UserError

KEYS = [f"{n:02x}" * 32 for n in range(6)]
AGES_SECONDS = [500, 100, 400, 300, 200, 600]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A cache of six entries of over 1000 bytes each, used so many seconds ago; nobody works with it."""
    cache = Cache(tmp_path / "cache")
    for key, age in zip(KEYS, AGES_SECONDS, strict=True):
        folder = cache.stage()
        (folder / "model").write_bytes(b"x" * 1000)
        entry = cache.put(key, {}, folder)
        os.utime(entry.folder.parent, (time.time() - age,) * 2)
    return cache.root


def there(root: Path) -> list[int]:
    return [n for n, key in enumerate(KEYS) if (root / "entries" / key[:2] / key).is_dir()]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["cache", *arguments])


def test_what_was_used_longest_ago_goes_first_until_the_size_is_met(root: Path) -> None:
    each = usage(root).size_bytes / 6
    done = trim(root, int(3.5 * each))
    assert there(root) == [1, 3, 4]
    assert (done.removed, done.left_bytes) == (3, usage(root).size_bytes)
    assert done.freed_bytes == 3 * each
    assert trim(root, int(3.5 * each)).removed == 0
    assert trim(root, 0).left_bytes == 0
    assert there(root) == []
    assert not [p for p in (root / "staging").rglob("*") if p.is_file()]


def test_a_hit_is_a_use(root: Path) -> None:
    cache = Cache(root)
    assert cache.get(KEYS[5])
    del cache
    each = usage(root).size_bytes / 6
    trim(root, int(2.5 * each))
    assert there(root) == [1, 5]


def test_what_is_left_is_whole(root: Path) -> None:
    trim(root, int(usage(root).size_bytes / 2))
    cache = Cache(root)
    assert [n for n, key in enumerate(KEYS) if cache.get(key)] == there(root)


def test_what_a_living_process_has_used_stays(root: Path) -> None:
    code = (
        "import sys, pathlib\nfrom optkit.cache import Cache\n"
        "cache = Cache(pathlib.Path(sys.argv[1]))\n"
        f"assert cache.get({KEYS[5]!r}) and cache.get({KEYS[0]!r})\n"
        "print('ready', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        assert usage(root).users == 1
        result = invoke("trim", "--to", "0", "--cache", str(root))
        assert there(root) == [0, 5]
        assert result.exit_code == 4
        assert "removed 4 results" in result.stderr
        assert "are in use" in result.stderr
        child.stdin.close()
        assert child.wait(30) == 0
    assert invoke("trim", "--to", "0", "--cache", str(root)).exit_code == 0
    assert there(root) == []


def test_a_result_made_while_a_process_lives_stays(root: Path) -> None:
    cache = Cache(root)
    folder = cache.stage()
    (folder / "model").write_bytes(b"new")
    new = cache.put("ff" * 32, {}, folder)
    assert trim(root, 0).left_bytes > 0
    assert cache.get("ff" * 32) == new
    assert there(root) == []


def test_checkpoints_go_too_unless_a_worker_holds_them(root: Path) -> None:
    cache = Cache(root)
    held, left, fresh = KEYS[:3]
    for key in (held, left, fresh):
        (cache.partial(key) / "step-1").write_bytes(b"y" * 100)
    for key in (held, left):
        os.utime(root / "partial" / key, (1, 1))
    lock = lock_folder(root / "partial" / held)
    trim(root, 0)
    unlock_folder(lock)
    assert {p.name for p in (root / "partial").iterdir()} == {fresh, held}


def test_a_reader_beside_trims_has_each_entry_whole_or_not_at_all(root: Path) -> None:
    """What `get` gave stays for as long as its cache lives, however many trims run beside it."""
    stop, wrong = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            cache = Cache(root)
            for key in KEYS:
                folder = cache.stage()
                (folder / "model").write_bytes(b"x" * 1000)
                entry = cache.get(key) or cache.put(key, {}, folder)
                if len((entry.folder / "model").read_bytes()) != 1000:
                    wrong.append(key)
            for key in KEYS:
                if cache.get(key) is None:
                    wrong.append(key)

    def guarded() -> None:
        try:
            read()
        except BaseException as error:
            wrong.append(repr(error))

    readers = [threading.Thread(target=guarded) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(40):
        trim(root, 0)
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []


def test_a_cache_that_is_not_there_holds_nothing_and_is_not_made(tmp_path: Path) -> None:
    result = invoke("info", "--cache", str(tmp_path / "none"), "--json")
    assert json.loads(result.stdout)["results"] == 0
    assert not (tmp_path / "none").exists()


def test_info(root: Path) -> None:
    data = json.loads(invoke("info", "--cache", str(root), "--json").stdout)
    assert (data["path"], data["results"], data["unfinished"], data["processes"]) == (str(root), 6, 0, 0)
    assert data["result_bytes"] == usage(root).size_bytes >= 6000
    shown = invoke("info", "--cache", str(root)).stdout
    assert str(root) in shown
    assert "6, " in shown


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("10GB", 10**10), ("1.5 MB", 1_500_000), ("2GiB", 2 << 30), ("100", 100), ("7k", 7000), ("3 B", 3)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "10GBit", "1iB", "GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match="is no size"):
        parse_size(text)
    assert invoke("trim", f"--to={text}").exit_code == 2
