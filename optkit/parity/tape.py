"""What a model answered, kept on disk, so that a reference runs once however many artifacts are compared with it."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optkit.plugin import Session, Tensors

LIMIT_BYTES = 4 << 30
"""A tape stops recording here; what is not on it is computed again by whoever needs it."""


class Tape:
    """Outputs per case and batch, as FOLDER/CASE/BATCH.npz. Memory holds one batch at a time."""

    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder = folder
        self.left_bytes = limit_bytes

    def _path(self, case: int, batch: int) -> Path:
        return self.folder / str(case) / f"{batch}.npz"

    def write(self, case: int, batch: int, outputs: Tensors) -> None:
        """Keep the outputs of one batch, while the limit allows."""
        import numpy as np

        self.left_bytes -= sum(t.nbytes for t in outputs.values())
        if self.left_bytes < 0:
            return
        path = self._path(case, batch)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Output names may hold any character, a file name may not: they go in as positions plus a list of names. Types
        # that numpy itself does not know (bfloat16) go in as unsigned integers of their width.
        plain = {str(i): t.view(f"u{t.dtype.itemsize}") if t.dtype.kind == "V" else t
                 for i, t in enumerate(outputs.values())}  # fmt: skip
        dtypes = np.array([t.dtype.name for t in outputs.values()], dtype=str)
        np.savez(path, names=np.array(list(outputs), dtype=str), dtypes=dtypes, **plain)  # type: ignore[arg-type]

    def read(self, case: int, batch: int) -> Tensors | None:
        """The outputs of one batch, or None when they are not, or not whole, on the tape."""
        import numpy as np

        path = self._path(case, batch)
        if not path.exists():
            return None
        try:
            with path.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
                kinds = zip(stored["names"], stored["dtypes"], strict=True)
                return {str(name): _as(stored[str(i)], str(kind)) for i, (name, kind) in enumerate(kinds)}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None


def _as(tensor: NDArray[np.generic], dtype: str) -> NDArray[np.generic]:
    if tensor.dtype.name == dtype or tensor.dtype.kind in "US":
        return tensor
    import ml_dtypes

    return tensor.view(getattr(ml_dtypes, dtype))


class Reference:
    """A model's answers: from its tape, or by running it when the tape lacks them.

    `open_session` gives the context manager of a Session; it is entered at most once, on the first miss.
    """

    def __init__(
        self,
        tape: Tape,
        open_session: Callable[[], AbstractContextManager[Session]],
        adapt: Callable[[Mapping[str, object]], Tensors],
    ) -> None:
        self._tape = tape
        self._open = open_session
        self._adapt = adapt
        self._stack = ExitStack()
        self._session: Session | None = None

    def __enter__(self) -> Reference:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def outputs(self, case: int, batch: int, tensors: Tensors) -> Tensors:
        """What the model answers to batch number `batch` of a case, whose inputs are `tensors`."""
        known = self._tape.read(case, batch)
        if known is not None:
            return known
        if self._session is None:
            self._session = self._stack.enter_context(self._open())
        return self._session.infer(self._adapt(tensors))
