"""A cache entry as one file, for stores that have no folders and no renames, and the proof that it is whole.

    entry.json      {"key", "files": {NAME: {"size", "sha256"}}, "data"}, as in the folder
    files/NAME      its files, not compressed

A zip's table is at its end and has a checksum of entry.json, which has the digest of every file: what was cut short,
damaged or put under another key is found out before anything is used.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

RECORD, FILES = "entry.json", "files"

_RECORD_LIMIT_BYTES = 256 << 20
_BLOCK_BYTES = 1 << 20
_DATE = (1980, 1, 1, 0, 0, 0)
_KEY = re.compile("[0-9a-f]{64}")


# What zipfile and json raise on bytes that are none of theirs; RuntimeError is an encrypted member.
_STRANGE = (zipfile.BadZipFile, zlib.error, KeyError, ValueError, TypeError, AttributeError, EOFError, RuntimeError,
            FileExistsError, NotADirectoryError, IsADirectoryError)  # fmt: skip


class DamagedError(Exception):
    """An archive that is not what its key promises; the message says how."""


def is_key(text: str) -> bool:
    """Whether a text can be a key: a sha256 in hex, so that it never leads out of the store's folder."""
    return _KEY.fullmatch(text) is not None


def pack(entry: Path, to: Path) -> None:
    """Write the entry in a folder of the cache as one file. Equal entries make equal files."""
    record = json.loads((entry / RECORD).read_text(encoding="utf-8"))
    # An mtime is for this machine's own look at its files.
    files = {name: {"size": was["size"], "sha256": was["sha256"]} for name, was in record["files"].items()}
    with zipfile.ZipFile(to, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        head = zipfile.ZipInfo(RECORD, _DATE)
        archive.writestr(head, json.dumps({"key": record["key"], "files": files, "data": record["data"]}))
        for name in sorted(files):
            member = zipfile.ZipInfo(f"{FILES}/{name}", _DATE)
            with (entry / FILES / name).open("rb") as made, archive.open(member, "w", force_zip64=True) as kept:
                shutil.copyfileobj(made, kept, _BLOCK_BYTES)


def unpack(archive: Path, key: str, into: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Make the folder `into` with an archive's files. Returns the entry's data, and the sha256 of each file.

    Raises DamagedError; what is in `into` then is of no use.
    """
    into.mkdir()
    try:
        with zipfile.ZipFile(archive) as kept:
            head = kept.getinfo(RECORD)
            if head.file_size > _RECORD_LIMIT_BYTES:
                raise DamagedError(f"its {RECORD} is too long")
            record = json.loads(kept.read(head).decode("utf-8"))
            found, files, data = record["key"], record["files"], record["data"]
            if found != key:
                raise DamagedError("it is another result's")
            if not isinstance(data, dict):
                raise DamagedError(f"its {RECORD} is none")
            digests = {name: _unpack_file(kept, name, was, into) for name, was in files.items()}
    except _STRANGE as error:
        raise DamagedError(f"it is cut short or no archive of optkit's ({type(error).__name__})") from error
    return data, digests


def _unpack_file(kept: zipfile.ZipFile, name: str, was: Mapping[str, Any], into: Path) -> str:
    """Copy a file out of an archive; its sha256, which is the one on record. Raises DamagedError."""
    here, there = PurePosixPath(name), PureWindowsPath(name)
    if here.is_absolute() or there.drive or there.root or "\\" in name or ".." in here.parts or not here.parts:
        raise DamagedError(f"it has a file that would lie outside its folder: {name!r}")
    size, sha256 = int(was["size"]), str(was["sha256"])
    path, digest, left = into / here, hashlib.sha256(), size
    path.parent.mkdir(parents=True, exist_ok=True)
    with kept.open(f"{FILES}/{name}") as source, path.open("xb") as target:
        while block := source.read(_BLOCK_BYTES):
            left -= len(block)
            if left < 0:
                break
            digest.update(block)
            target.write(block)
    if left or digest.hexdigest() != sha256:
        raise DamagedError(f"{name} is not what was put there")
    return sha256
