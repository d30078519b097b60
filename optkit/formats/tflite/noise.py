"""Quiet for LiteRT: what its C++ libraries write to file descriptor 2, kept for errors or passed on where unknown."""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Lines of the C++ libraries: the delegate's greeting, absl's prologue and log lines (the converter's statistics), and
# errors of the runtime, which are in the exception too.
KNOWN = re.compile(r"(INFO|VERBOSE|ERROR): .*|WARNING: All log messages before absl::InitializeLog.*|[IWE]\d{4} .*|\s*")

# What Python loggers say when litert-torch is imported (of GPU kernels of torchao's), and of what a pass asks for.
LOGS = ("torchao", "torchao.kernel.intmm", "torch.utils._pytree", "absl")
SAID = re.compile(
    r"Failed to load |Warning: Detected no triton|.*(KernelPreference|is an Enum subclass and is now natively)|"
    r"Signature %r: enable_x64=False downcasts"
)


@contextmanager
def captured() -> Iterator[Callable[[], str]]:
    """A function that gives what was written to descriptor 2 since; on leaving, lines that are not known go there."""
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)

        def text() -> str:
            sys.stderr.flush()
            held.seek(0)
            return held.read().decode(errors="replace")

        try:
            yield text
        finally:
            said = text()
            os.dup2(before, 2)
            os.close(before)
            for line in said.splitlines():
                if not KNOWN.fullmatch(line):
                    os.write(2, f"{line}\n".encode())


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of litert-torch and ai-edge-quantizer about what the passes decide and report themselves."""
    before = os.environ.get("LITERT_TORCH_SHOW_PROGRESS")
    os.environ["LITERT_TORCH_SHOW_PROGRESS"] = "n"
    logs = [logging.getLogger(), *(logging.getLogger(name) for name in LOGS)]

    def wanted(record: logging.LogRecord) -> bool:
        return not SAID.match(str(record.msg))

    for log in logs:
        log.addFilter(wanted)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", r"Warning: Enabling `experimental_preserve_all_tensors`", UserWarning)
            yield
    finally:
        for log in logs:
            log.removeFilter(wanted)
        os.environ.pop("LITERT_TORCH_SHOW_PROGRESS")
        if before is not None:
            os.environ["LITERT_TORCH_SHOW_PROGRESS"] = before
