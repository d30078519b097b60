"""A full disk, told so that one knows which."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from optkit.errors import UnavailableError

FULL = (errno.ENOSPC, errno.EDQUOT)

_NEARLY_BYTES = 1 << 20  # what failed may have been removed again, and a block is always left over

Place = tuple[str, Path, str]
"""What a folder is for, the folder, and what puts it elsewhere."""


def temporary_files() -> Place:
    """The place of temporary files."""
    return "the temporary files", Path(tempfile.gettempdir()), "TMPDIR=DIR"


def disk_error(error: OSError, places: Sequence[Place]) -> UnavailableError | None:
    """The error for a full disk, which names the one of `places` that it is; None where `error` is another one."""
    if error.errno not in FULL:
        return None
    target = error.filename2 or error.filename  # of a copy the second one is written
    full = [p for p in places if target and Path(target).absolute().is_relative_to(p[1].absolute())]
    full = full[:1] or [p for p in places if nearly_full(p[1])]
    where = ", ".join(f"{what} {folder}" for what, folder, _ in full) or target
    remedies = " or ".join(dict.fromkeys(remedy for *_, remedy in full)) or "--out DIR or --cache DIR"
    return UnavailableError(
        "no space left on the disk" + (f" of {where}" if full else f" (writing {where})" if where else ""),
        hint=f"free some space, or use another disk with {remedies}; finished steps are kept",
        code="OPK-405",
    )


def nearly_full(folder: Path) -> bool:
    """Whether next to nothing more can be written to `folder`."""
    return _free_bytes(folder) < _NEARLY_BYTES


def _free_bytes(folder: Path) -> float:
    while True:
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            if folder == folder.parent:
                return float("inf")
            folder = folder.parent
