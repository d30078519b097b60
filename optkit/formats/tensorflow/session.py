"""A TensorFlow function, run: named arrays in, named arrays out, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optkit.artifact import Signature
from optkit.errors import StepError, UnavailableError
from optkit.formats.tensorflow import core as tf_core
from optkit.formats.tflite.noise import captured
from optkit.plugin import checked_feeds

if TYPE_CHECKING:
    from optkit.plugin import Tensors


class TensorFlowSession:
    """An open model; see `optkit.plugin.Session`.

    call: TensorFlow tensors by input name, to such by output name. `provider` is device and threads per operator.
    """

    def __init__(
        self, call: Callable[[Mapping[str, Any]], Mapping[str, Any]], signature: Signature, threads: int
    ) -> None:
        self._call, self._signature = call, signature
        self._tf = tf_core.load()
        self.provider = f"TensorFlow CPU, {threads} thread{'s' if threads > 1 else ''}"

    def infer(self, tensors: Tensors) -> Tensors:
        """Named inputs to named outputs, which are the caller's own. Raises DataError, StepError where it fails."""
        import numpy as np

        tf = self._tf
        checked = checked_feeds(tensors, self._signature.inputs, bfloat16="bfloat16")
        with tf.device("CPU:0"), captured():
            feeds = {name: tf.constant(_texts(value)) for name, value in checked.items()}
            try:
                made = self._call(feeds)
                found = {spec.name: made[spec.name].numpy() for spec in self._signature.outputs}
            except (tf.errors.OpError, ValueError, TypeError) as error:
                given = ", ".join(f"{name} {list(value.shape)}" for name, value in checked.items())
                raise StepError(
                    f"TensorFlow cannot run the model on {given}: {tf_core.reason(error)}",
                    details=str(error),
                    subject="model",
                    hint="check that each input has a size the model takes, and values in its range",
                ) from error
        wide = {spec.name for spec in self._signature.outputs if spec.dtype == "bfloat16"}
        return {n: value.astype(np.float32) if n in wide else np.asarray(value) for n, value in found.items()}


def _texts(value: Any) -> Any:
    """TensorFlow takes texts as objects; numpy's arrays of fixed-width ones it does not know."""
    return value.astype(object) if value.dtype.kind == "S" else value


def check_place(device: str, precision: str | None) -> None:
    """Raise UnavailableError for what a TensorFlow session cannot do here."""
    if device.partition(":")[0] != "cpu":
        raise UnavailableError(f"optkit runs TensorFlow on the CPU, not on {device!r}", hint="device: cpu")
    if precision is not None:
        raise UnavailableError(
            f"TensorFlow computes in the precision of the model and cannot be asked for {precision}",
            hint="convert the model itself",
        )


@contextmanager
def loading() -> Iterator[None]:
    """Quiet, and on the CPU, while a model is read."""
    tf = tf_core.load()
    with tf.device("CPU:0"), captured(), tf_core.quiet():
        yield
