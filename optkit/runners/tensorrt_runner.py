"""Runs TensorRT engines on the GPU they were built for; elsewhere says which one that is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from optkit.artifact import Artifact, Signature, TensorSpec
from optkit.errors import DataError, NotHereError, StepError, UnavailableError
from optkit.formats.tensorrt import cuda_driver
from optkit.formats.tensorrt import engine as tensorrt_engine
from optkit.plugin import Runner, checked_feeds

if TYPE_CHECKING:
    from optkit.plugin import Tensors


class TensorRTSession:
    """An open engine; see `optkit.plugin.Session`. `provider` is builder, version and GPU."""

    def __init__(self, context: Any, gpu: cuda_driver.Gpu, signature: Signature, ranges: Mapping[str, Any],
                 provider: str) -> None:  # fmt: skip
        self._context = context
        self._gpu = gpu
        self._signature = signature
        self._ranges = ranges
        self.provider = provider

    def infer(self, tensors: Tensors) -> Tensors:
        """Named inputs to named outputs, copied to the GPU and back.

        Raises DataError for a missing or unknown name, a wrong dtype, and a size outside of what the engine was built
        for; StepError where TensorRT itself fails.
        """
        import numpy as np

        feeds = checked(tensors, self._signature.inputs, self._ranges)
        context, outputs = self._context, {}
        with ExitStack() as stack:
            for name, array in feeds.items():
                address = stack.enter_context(self._gpu.buffer(array.nbytes))
                self._gpu.write(address, array)
                if not context.set_input_shape(name, array.shape) or not context.set_tensor_address(name, address):
                    raise StepError(f"TensorRT refuses the shape {array.shape} for input {name!r}",
                                    hint="optkit inspect shows the sizes that the engine was built for")  # fmt: skip
            for spec in self._signature.outputs:
                shape = tuple(context.get_tensor_shape(spec.name))
                if any(size < 0 for size in shape):
                    raise StepError(f"the size of output {spec.name!r} depends on the data, which is not supported",
                                    hint="let the model give an output of fixed size (top-k, padding)")  # fmt: skip
                array = np.empty(shape, _numpy(spec.dtype))
                outputs[spec.name] = array, stack.enter_context(self._gpu.buffer(array.nbytes))
                context.set_tensor_address(spec.name, outputs[spec.name][1])
            if not context.execute_async_v3(self._gpu.stream):
                raise StepError("TensorRT could not run the engine", hint="nvidia-smi shows the GPU's state and memory")
            self._gpu.wait()
            for array, address in outputs.values():
                self._gpu.read(address, array)
        return {
            spec.name: outputs[spec.name][0].astype(np.float32) if spec.dtype == "bfloat16" else outputs[spec.name][0]
            for spec in self._signature.outputs
        }


def checked(tensors: Tensors, inputs: tuple[TensorSpec, ...], ranges: Mapping[str, Any]) -> Tensors:
    """The inputs in the signature's order, contiguous. Raises DataError for what the engine was not built for."""
    import numpy as np

    feeds = {}
    for spec, array in zip(inputs, checked_feeds(tensors, inputs).values(), strict=True):
        if spec.dtype == "bfloat16":  # numpy itself has none
            array = array.astype(_numpy(spec.dtype))
        fixed = [size if isinstance(size, int) else 0 for size in spec.shape or ()]
        sizes = ranges.get(spec.name) or {"min": fixed, "max": fixed}
        fits = len(array.shape) == len(fixed) and all(
            low <= size <= high for low, size, high in zip(sizes["min"], array.shape, sizes["max"], strict=True)
        )
        if not fits:
            raise DataError(f"input {spec.name!r} has shape {array.shape}, the engine was built for {sizes['min']} to "
                            f"{sizes['max']}", subject=f"inputs.{spec.name}",
                            hint="change the sample, or build with a wider range under dims:")  # fmt: skip
        feeds[spec.name] = np.ascontiguousarray(array)
    return feeds


def _numpy(dtype: str) -> Any:
    import numpy as np

    if dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(dtype)


@contextmanager
def open_model(
    artifact: Artifact, device: str = "cpu", threads: int = 1, precision: str | None = None
) -> Iterator[TensorRTSession]:
    """A session on the GPU of that number ("cuda:1"), or on the first that the engine is for.

    Raises NotHereError where this machine has no such GPU, driver or operating system, naming what the engine was built
    for and what is here; UnavailableError where the runtime is missing or of another version.
    """
    if precision is not None:
        raise UnavailableError(f"an engine computes as it was built and cannot be asked for {precision}",
                               hint="put onnx.fp16 or onnx.quantize before onnx.to_tensorrt")  # fmt: skip
    built = tensorrt_engine.read(artifact.path)
    tensorrt_engine.check(artifact.path, built)
    machine = tensorrt_engine.here()
    if why := tensorrt_engine.refusal(built, machine):
        raise NotHereError(why, hint="run optkit verify on the target, or build for this machine")
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda", "gpu") or (number and not number.isdigit()):
        raise UnavailableError(f"TensorRT has no device {device!r}", hint="cuda, or cuda:1")
    fitting = [gpu for gpu in machine.gpus if tensorrt_engine.fits(built, gpu.capability)]
    chosen = [gpu for gpu in fitting if not number or gpu.index == int(number)]
    if not chosen:
        raise NotHereError(f"the engine was built for {tensorrt_engine.target(built)}, which {device} is not",
                           hint=f"use cuda:{fitting[0].index}")  # fmt: skip
    trt = tensorrt_engine.load(built["builder"])
    if problem := tensorrt_engine.runtime_problem(built, trt.__version__):
        raise problem
    with cuda_driver.gpu(chosen[0].index) as gpu:
        runtime, engine = tensorrt_engine.deserialise(artifact.path, built)
        context = engine.create_execution_context()
        if context is None:
            raise StepError("the GPU has no memory left for the engine", hint="free the GPU, or use a smaller model")
        provider = f"{tensorrt_engine.TITLES[built['builder']]} {trt.__version__} on {chosen[0].name}"
        ranges = built["profiles"][0] if built["profiles"] else {}
        yield TensorRTSession(context, gpu, Signature.from_json(built["signature"]), ranges, provider)
        del context, engine, runtime  # in this order, while the GPU is still current


RUNNER = Runner(
    format="tensorrt",
    version=1,
    main=tensorrt_engine.MAIN,
    suffixes=(".engine", ".plan", ".trt"),
    describe=tensorrt_engine.describe,
    open=open_model,
    inspect=tensorrt_engine.inspect,
    tools=tensorrt_engine.distributions(),
)
