"""Deliveries: a proven artifact in a folder of the user's, with the record that lets anyone prove it again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from optkit.artifact import Artifact, digest_file, digest_of
from optkit.errors import UserError
from optkit.registry import get_runner
from optkit.report import write_atomically
from optkit.reports import DRAWN

RECORD = "optkit.json"
VECTORS = "test-vectors.npz"
SCHEMA = 1


@contextlib.contextmanager
def output_folder(out: Path, deliveries: Iterable[str]) -> Iterator[None]:
    """Make `out`, and hold it against other runs; an earlier run's report goes, so that nobody takes it for this one's.

    Raises UserError when it cannot be written to, when another run holds it, and when something that optkit did not
    make is where a delivery will go.
    """
    handle = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".optkit-{os.getpid()}"
        probe.touch()
        probe.unlink()
        handle = _hold(out)
        for name in deliveries:
            _check_free(out / name)
            for left in out.glob(f".{name}.*.tmp"):  # of a run that was killed
                shutil.rmtree(left, ignore_errors=True)
        drawn = (out / name for name in ("report.json", *DRAWN))
        for old in (*drawn, *out.glob("logs/worker-*.log")):
            old.unlink(missing_ok=True)
    except OSError as error:
        _release(handle)
        raise UserError(
            f"the output folder {out} cannot be written to: {error.strerror or error}",
            hint="name another with --out DIR",
        ) from error
    try:
        yield
    finally:
        _release(handle)


def _hold(out: Path) -> int | None:
    """The descriptor of a lock on `out`; None where there are no locks. Raises UserError when another run has it."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return handle
    except BlockingIOError:
        os.close(handle)
        raise UserError(
            f"another optkit run is writing to {out}", hint="wait for it, or name another folder with --out DIR"
        ) from None
    except OSError:  # a file system without locks
        os.close(handle)
        return None


def _release(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def _check_free(folder: Path) -> None:
    """Raise UserError when something that optkit did not make is at `folder`."""
    if folder.is_symlink() or (folder.exists() and not (folder / RECORD).is_file()
                               and (not folder.is_dir() or any(folder.iterdir()))):  # fmt: skip
        raise UserError(f"{folder} is in the way: optkit did not make it", hint="move it, or name another --out DIR")


def clear(folder: Path) -> None:
    """Remove an earlier delivery, so that nobody ships it for the one that failed. Others' folders are left alone."""
    if (folder / RECORD).is_file() and not folder.is_symlink():
        shutil.rmtree(folder)


def deliver(
    artifact: Artifact,
    folder: Path,
    *,
    step: Mapping[str, Any],
    chain: Sequence[Mapping[str, Any]],
    run: Mapping[str, Any],
    vectors: Path | None,
) -> None:
    """Copy a proven artifact to `folder` with its optkit.json and test vectors: whole, or not at all.

    Its files go into the sub-folder that its format's runner names, such as the version folder of TensorFlow Serving.

    Files that are there already, unchanged since their delivery, are not copied again. Raises UserError when the folder
    holds something that optkit did not put there.
    """
    place = PurePosixPath(get_runner(artifact.format).delivered_in)
    record = {
        "schema": SCHEMA,
        "step": step["id"],
        "format": artifact.format,
        "main": (place / artifact.path.name).as_posix(),
        "digest": artifact.digest,
        "signature": artifact.signature.to_json() if artifact.signature else None,
        "runtime": step["runtime"],  # the settings it was checked with
        "file": (step["notes"] or {}).get("file"),  # what it takes and gives itself, where its runner converts
        "dims": run["source"]["dims"],
        "preprocessing": {n: d.get("preprocessing") for n, d in run["data"].items()},
        "status": step["status"],
        "check": step["check"],
        "speed": step["speed"],
        "source_speed": step["source_speed"],
        "deferred": {**step["deferred"], "reason": step["error"]["what"]} if step["deferred"] else None,
        "vectors": VECTORS if vectors else None,
        "provenance": {
            "name": run["name"], "recipe": run["recipe"], "source": run["source"], "data": run["data"],
            "environment": run["environment"],
            "passes": [{"id": s["id"], "pass": s["pass"], "options": s["options"], "data": s["data"],
                        "digest": s["artifact"]["digest"] if s["artifact"] else None} for s in chain],
        },
    }  # fmt: skip
    sources = {(place / name).as_posix(): artifact.path.parent / name for name in artifact.files}
    if vectors:
        sources[VECTORS] = vectors
    _check_free(folder)
    standing = _standing(folder, sources)
    if standing is not None:
        write_atomically(folder / RECORD, _text({**record, "files": standing}))
        return
    staged, old = (folder.with_name(f".{folder.name}.{os.getpid()}{n}.tmp") for n in ("", ".old"))
    shutil.rmtree(staged, ignore_errors=True)
    try:
        staged.mkdir(parents=True)
        files = {}
        for name, path in sources.items():
            target = staged / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            shutil.copystat(path, target)
            files[name] = {
                "size_bytes": target.stat().st_size,
                "mtime_ns": target.stat().st_mtime_ns,
                "sha256": digest_file(path),
            }
        write_atomically(staged / RECORD, _text({**record, "files": files}))
        if folder.exists():
            folder.rename(old)
        staged.rename(folder)
    finally:
        for left in (staged, old):
            shutil.rmtree(left, ignore_errors=True)


def _standing(folder: Path, sources: Mapping[str, Path]) -> dict[str, Any] | None:
    """The file records of a delivery whose files are copies of `sources` and unchanged, else None."""
    try:
        files = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
        if set(files) != set(sources):
            return None
        for name, path in sources.items():
            mine, theirs, was = (folder / name).stat(), path.stat(), files[name]
            # copystat gave the copy its original's time stamp, so equal stamps and sizes tell an untouched copy.
            if not mine.st_size == theirs.st_size == was["size_bytes"]:
                return None
            if not mine.st_mtime_ns == theirs.st_mtime_ns == was["mtime_ns"]:
                return None
        return dict(files)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _text(record: Mapping[str, Any]) -> str:
    """The record as text, with its own digest, by which `optkit verify` knows that nobody changed it."""
    whole = {**record, "sha256": digest_of(record)}
    return json.dumps(whole, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
