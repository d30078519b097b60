"""The NVIDIA driver as far as running an engine needs it: which GPUs are here, and buffers on one of them.

It is called directly, through its stable C interface (CUDA Driver API): no toolkit and no further package is needed.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from optkit.errors import NotHereError, StepError

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{MAJOR,MINOR}


@dataclass(frozen=True)
class Device:
    """A GPU: its number, name, and compute capability such as "8.9"."""

    index: int
    name: str
    capability: str


@functools.cache
def library() -> Any:
    """The driver's library, initialised; None where there is no driver or it finds no GPU."""
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    return cuda if cuda.cuInit(0) == 0 else None


@functools.cache
def devices() -> tuple[Device, ...]:
    """The GPUs of this machine; empty without a driver."""
    cuda, count, found = library(), ctypes.c_int(), []
    if cuda is None or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    for index in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(128)
        _done(cuda, "cuDeviceGet", ctypes.byref(device), index)
        _done(cuda, "cuDeviceGetName", name, len(name), device)
        _done(cuda, "cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, device)
        _done(cuda, "cuDeviceGetAttribute", ctypes.byref(minor), _MINOR, device)
        found.append(Device(index, name.value.decode(errors="replace"), f"{major.value}.{minor.value}"))
    return tuple(found)


def _done(cuda: Any, function: str, *arguments: Any) -> None:
    code = getattr(cuda, function)(*arguments)
    if code != 0:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(code, ctypes.byref(text))
        said = text.value.decode() if text.value else f"error {code}"
        hint = "use smaller batches, or free the GPU" if "memory" in said else "nvidia-smi shows the state of the GPU"
        raise StepError(f"the NVIDIA driver's {function} failed: {said}", hint=hint)


class Gpu:
    """The open primary context of one GPU, and a stream on it."""

    def __init__(self, cuda: Any, stream: int) -> None:
        self._cuda = cuda
        self.stream = stream

    @contextmanager
    def buffer(self, size_bytes: int) -> Iterator[int]:
        """The address of so many bytes on the GPU, freed afterwards."""
        address = ctypes.c_uint64()
        _done(self._cuda, "cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size_bytes, 1)))
        try:
            yield address.value
        finally:
            self._cuda.cuMemFree_v2(address)

    def write(self, address: int, array: Any) -> None:
        """Copy a contiguous array to the GPU."""
        source = ctypes.c_void_p(array.ctypes.data)
        _done(self._cuda, "cuMemcpyHtoD_v2", ctypes.c_uint64(address), source, ctypes.c_size_t(array.nbytes))

    def read(self, address: int, array: Any) -> None:
        """Copy from the GPU into a contiguous array."""
        target = ctypes.c_void_p(array.ctypes.data)
        _done(self._cuda, "cuMemcpyDtoH_v2", target, ctypes.c_uint64(address), ctypes.c_size_t(array.nbytes))

    def wait(self) -> None:
        """Return when all that was put on the stream is done. Raises StepError where some of it failed."""
        _done(self._cuda, "cuStreamSynchronize", ctypes.c_void_p(self.stream))


@contextmanager
def gpu(index: int) -> Iterator[Gpu]:
    """A GPU by its number, current on this thread. Raises NotHereError where there is none of that number."""
    cuda = library()
    if cuda is None or index >= len(devices()):
        raise NotHereError(f"there is no GPU {index} here", hint="nvidia-smi lists them")
    device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    with ExitStack() as stack:
        _done(cuda, "cuDeviceGet", ctypes.byref(device), index)
        _done(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        stack.callback(cuda.cuDevicePrimaryCtxRelease_v2, device)
        _done(cuda, "cuCtxSetCurrent", context)
        _done(cuda, "cuStreamCreate", ctypes.byref(stream), 0)
        stack.callback(cuda.cuStreamDestroy_v2, stream)
        yield Gpu(cuda, stream.value or 0)
