from __future__ import annotations

import errno
from pathlib import Path

import pytest

from optkit import disk
from optkit.disk import disk_error, nearly_full, temporary_files


def places(folder: Path) -> list[disk.Place]:
    return [("the output folder", folder / "out", "--out DIR"), ("the cache", folder / "cache", "--cache DIR")]


def test_a_copy_names_where_it_was_written_not_what_was_read(tmp_path: Path) -> None:
    error = OSError(
        errno.ENOSPC, "No space left", str(tmp_path / "cache/model.onnx"), None, str(tmp_path / "out/slim/m")
    )
    told = disk_error(error, places(tmp_path))
    assert told is not None
    assert told.what == f"no space left on the disk of the output folder {tmp_path / 'out'}"
    assert told.hint == "free some space, or use another disk with --out DIR; finished steps are kept"
    assert told.exit_code == 4


def test_without_a_file_the_full_disk_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_free_bytes", lambda folder: 0 if folder.name == "cache" else 1 << 40)
    told = disk_error(OSError(errno.EDQUOT, "Disk quota exceeded"), [*places(tmp_path), temporary_files()])
    assert told is not None
    assert told.what == f"no space left on the disk of the cache {tmp_path / 'cache'}"
    monkeypatch.setattr(disk, "_free_bytes", lambda folder: 1 << 40)
    told = disk_error(OSError(errno.ENOSPC, "No space left", "/elsewhere/file"), places(tmp_path))
    assert told is not None
    assert told.what == "no space left on the disk (writing /elsewhere/file)"
    assert "--out DIR or --cache DIR" in told.hint


def test_other_errors_are_left_alone(tmp_path: Path) -> None:
    assert disk_error(PermissionError(errno.EACCES, "no"), places(tmp_path)) is None
    assert not nearly_full(tmp_path / "not/there/yet")
