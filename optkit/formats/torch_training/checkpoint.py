"""Training that can be killed: reproducible arithmetic, and checkpoints that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from optkit.plugin import need

FILE = "checkpoint.pt"


@contextmanager
def reproducible(seed: int, threads: int, device: str) -> Iterator[None]:
    """Equal calls give equal bits meanwhile: every generator seeded, deterministic kernels, a fixed number of threads.

    Another number of threads sums in another order, and so gives other last bits. What was set before comes back.
    """
    torch, np = need("torch"), need("numpy")
    with ExitStack() as stack:
        drawn = random_states()
        stack.callback(set_random_states, drawn)
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        before = torch.are_deterministic_algorithms_enabled()
        stack.callback(torch.use_deterministic_algorithms, before, warn_only=warn_only)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        if device != "cpu":
            # cuBLAS reads it when it starts: without a fixed workspace its products are not reproducible.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            stack.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
            torch.backends.cudnn.benchmark = False
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % (1 << 32))
        yield


def random_states() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's global generators, of tensors and plain values alone."""
    torch, np = need("torch"), need("numpy")
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), [int(k) for k in keys], int(position), int(has_gauss), float(cached)],
        "python": [version, list(words), gauss],
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Put back what `random_states` gave."""
    torch, np = need("torch"), need("numpy")
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), position, has_gauss, cached))
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))


class _Disk(io.RawIOBase):
    """A file that remembers why it could not be written: torch.save tells only that it could not."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            self.handle.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        return memoryview(data).nbytes

    def flush(self) -> None:
        if self.error is None and not self.handle.closed:
            self.handle.flush()


def save(state: Mapping[str, Any], folder: Path) -> None:
    """Write `state`, of tensors and plain values, as the folder's checkpoint in place of the last.

    A kill at any moment leaves the last one or this one. Raises OSError with the file's name where the disk is full.
    """
    torch = need("torch")
    temporary = folder / f"{FILE}.tmp"
    try:
        with temporary.open("wb") as handle:
            disk = _Disk(handle)
            try:
                torch.save(dict(state), disk)
            except (OSError, RuntimeError) as error:
                raise disk.error or error from error
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(folder / FILE)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(temporary)) from error


def load(folder: Path) -> dict[str, Any] | None:
    """The folder's checkpoint; None where there is none, or none that can be read."""
    torch = need("torch")
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # damaged by a disk: training from the start gives the same result, only later
        return None
    return state


__all__ = ["FILE", "load", "random_states", "reproducible", "save", "set_random_states"]
