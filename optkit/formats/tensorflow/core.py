"""TensorFlow as optkit uses it: imported quietly, on the CPU, Keras with TensorFlow under it and no user settings."""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType

from optkit.errors import UnavailableError
from optkit.formats.tflite.noise import captured
from optkit.plugin import need

DISTRIBUTION = "tensorflow-cpu"


def load() -> ModuleType:
    """`tensorflow`. Raises UnavailableError. What was imported before, by somebody else, is left as it is."""
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"]
    with _importing():
        return need("tensorflow", DISTRIBUTION)


def keras() -> ModuleType:
    """`keras`, version 3, on TensorFlow. Raises UnavailableError where this process has it on another backend."""
    load()
    if "keras" in sys.modules:
        module = sys.modules["keras"]
    else:
        with _importing():
            module = need("keras")
    backend = module.config.backend()
    if backend != "tensorflow":
        raise UnavailableError(
            f"keras runs on {backend} in this process, and optkit needs it on TensorFlow",
            hint="set KERAS_BACKEND=tensorflow before keras is imported, or run optkit from the command line",
        )
    return module


@contextmanager
def _importing() -> Iterator[None]:
    """Quiet, and with no user settings of Keras read or written, which TensorFlow imports as well.

    A model must not depend on the home folder it loads in. TensorFlow's C++ part reads its log level once, at the first
    message; it probes for GPUs, and says that it found none.
    """
    with (
        tempfile.TemporaryDirectory(prefix="optkit-keras-") as home,
        _environment({"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow", "KERAS_HOME": home}),
        captured(),
        quiet(),
    ):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of TensorFlow's and Keras's own code, about which nobody can do anything."""
    logs = [(log, log.level) for log in map(logging.getLogger, ("absl", "tensorflow"))]
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning, UserWarning, SyntaxWarning):
            warnings.filterwarnings(
                "ignore", category=category, module=r"(tensorflow|keras|tf2onnx|google|gast|h5py)\b"
            )
        for log, level in logs:
            log.setLevel(max(level, logging.ERROR))
        try:
            yield
        finally:
            for log, level in logs:
                log.setLevel(level)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """These variables set meanwhile; the log level only where the user has not set it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    if level := before.get("TF_CPP_MIN_LOG_LEVEL"):
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = level
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def threads(count: int) -> int:
    """Let TensorFlow use that many threads per operator; returns how many it uses.

    That can be set only until it first computes in a process, so a later call may get another number than it asks for.
    """
    config = load().config.threading
    try:
        config.set_intra_op_parallelism_threads(count)
        config.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        pass
    return int(config.get_intra_op_parallelism_threads()) or os.cpu_count() or 1


_NOTHING = ("Graph execution error", "Detected at node", "<stack traces", "in user code:", 'File "', "*", "[[{{node")
"""How lines begin that say where in TensorFlow an error arose, not what it is."""


def reason(error: BaseException) -> str:
    """What a TensorFlow or Keras error says, in one line, without node names, colours and advice to its developers."""
    message = re.sub(r"\x1b\[\d*m", "", str(getattr(error, "message", "") or error))
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(_NOTHING)]
    first = lines[0] if lines else type(error).__name__
    if first.startswith("Exception encountered when calling") and len(lines) > 1:
        first = f"{first.removeprefix('Exception encountered when ').rstrip('.')}: {lines[1]}"
    return first.split(" [Op:")[0].split(" You can attempt")[0].strip()
