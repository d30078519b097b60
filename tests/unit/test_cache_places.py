"""Where a cache may lie: what is told of a place before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from optkit.cache import open_cache
from optkit.caching.place import place_of, shown
from optkit.caching.remote import Remote
from optkit.cli import cli
from optkit.errors import UnavailableError, UserError


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache named by the environment."""
    for name in ("OPTKIT_CACHE", "OPTKIT_CACHE_REMOTE", "OPTKIT_CACHE_MODE"):
        monkeypatch.delenv(name, raising=False)


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    default = Path("/xdg/optkit")
    assert place_of() == place_of("memory://a").__class__(default)
    assert (place_of("s3://b/c").root, place_of("s3://b/c").remote) == (default, "s3://b/c")
    assert place_of("simplecache::s3://b/c").remote == "simplecache::s3://b/c"
    monkeypatch.setenv("OPTKIT_CACHE", "s3://b/c")
    assert (place_of().root, place_of().remote) == (default, "s3://b/c")
    assert place_of("here").root == Path("here")
    monkeypatch.setenv("OPTKIT_CACHE", "/mine")
    monkeypatch.setenv("OPTKIT_CACHE_REMOTE", "gs://b")
    assert (place_of().root, place_of().remote) == (Path("/mine"), "gs://b")
    assert (place_of("here").root, place_of("here").remote) == (Path("here"), "gs://b")
    assert (place_of("s3://b").root, place_of("s3://b").remote) == (Path("/mine"), "s3://b")
    monkeypatch.setenv("OPTKIT_CACHE_MODE", "read-only, optional")
    assert place_of().modes == {"read-only", "optional"}


MISTAKES = {
    "no URL": ({"OPTKIT_CACHE_REMOTE": "/mnt/cache"}, "try: for a folder: file:///mnt/cache", 2),
    "two URLs": ({"OPTKIT_CACHE": "memory://a", "OPTKIT_CACHE_REMOTE": "memory://b"}, "name two URLs", 2),
    "a mode that is none": ({"OPTKIT_CACHE_REMOTE": "memory://a", "OPTKIT_CACHE_MODE": "readonly"},
                            "did you mean 'read-only'?", 2),
    "a mode of nothing": ({"OPTKIT_CACHE_MODE": "read-only"}, "and none is named", 2),
    "a kind that fsspec does not know": ({"OPTKIT_CACHE_REMOTE": "s4://a"}, "fsspec knows no s4://", 2),
    "a folder that may not be written": ({"OPTKIT_CACHE_REMOTE": "file:///proc/cache"}, "cannot be read", 4),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_told_before_any_work(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment, expected, code = MISTAKES[what]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    said = CliRunner().invoke(cli, ["cache", "info"])
    assert expected in said.stderr
    assert said.exit_code == code
    with pytest.raises((UserError, UnavailableError)) as caught:
        open_cache()
    assert caught.value.code == ("OPK-203" if code == 2 else "OPK-409")


@pytest.mark.parametrize("missing", ["fsspec", "s3fs"])
def test_what_is_not_installed_is_named_with_its_remedy(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins
    import sys

    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    if missing == "fsspec":
        monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UnavailableError) as caught:
        Remote("s3://bucket/cache").open()
    assert caught.value.code == "OPK-401"
    assert ('pip install "optkit[remote-cache]"' if missing == "fsspec" else "s3fs") in str(caught.value)


def test_a_file_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file, and a cache is a folder or a URL"):
        open_cache(tmp_path / "file")


def test_a_password_is_not_shown() -> None:
    assert shown("ftp://me:secret@host/a") == "ftp://me:***@host/a"
    assert shown("simplecache::sftp://me:se@cret@host/a") == "simplecache::sftp://me:***@host/a"
    assert shown("s3://bucket/a:b@c") == "s3://bucket/a:b@c"
