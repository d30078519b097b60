"""How the dims of a TFLite file vary: what a pass may be asked for, which way holds, and whether the file has it.

TFLite fixes most sizes in the graph. A conversion is tried with one graph that resizes, then with a signature for each
of some sizes, and each try is proved against the model before it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field, model_validator

from optkit.artifact import Artifact, Dim, TensorSpec
from optkit.errors import SourceError, StepError, did_you_mean
from optkit.formats.tflite import look as tflite_look
from optkit.formats.tflite import model as tflite_model
from optkit.formats.tflite import session as tflite_session
from optkit.formats.tflite.model import Contract
from optkit.formats.torch.feeds import dynamic_dims, static_shape
from optkit.plugin import Context, Options, need

if TYPE_CHECKING:
    from optkit.plugin import Tensors

CHANNELS_FIRST = ("NCHW", "NCL", "NCDHW")


class TfliteOptions(Options):
    """How dims vary in the file, and in which layout it takes images."""

    dynamic: Literal["auto", "resize", "sizes"] = Field(
        "auto",
        description="how dims vary: resize lets one graph be resized at run time, tried at min, opt and max; sizes "
        "holds a signature for each of some sizes; auto: resize where that works, else sizes of the batch",
    )
    sizes: dict[str, tuple[int, ...]] = Field(
        {},
        description="dim to the sizes that the file shall hold, such as {batch: [1, 8], sequence: [32, 128]}; other "
        "batches are put together from these, other sizes padded. Unless given min and opt of the batch",
    )
    pad: tuple[str, ...] = Field(
        (),
        description="dims filled up with zeros at the end to the next of their sizes: for models with a mask. The "
        "check compares with the unpadded model",
    )
    layout: Literal["NCHW", "NHWC"] = Field(
        "NCHW", description="NHWC: the file takes the inputs declared as NCHW with channels last"
    )
    channels_last_outputs: tuple[str, ...] = Field(
        (), description="outputs (batch, channels, ...) that the file shall give with channels last"
    )

    @model_validator(mode="after")
    def _consistent(self) -> TfliteOptions:
        if self.sizes and self.dynamic == "resize":
            raise ValueError("sizes go with dynamic: sizes")
        for name in self.pad:
            if name not in self.sizes:
                raise ValueError(f"pad names {name!r}, which has no sizes")
        for name, sizes in self.sizes.items():
            if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
                raise ValueError(f"sizes of {name!r} must be different numbers from 1 up")
        return self


class Conversion(Protocol):
    """A way to make the file: a frozen dataclass, so that it can be asked with another contract."""

    @property
    def agreed(self) -> Contract:
        """What a session shall take and give."""
        ...

    @property
    def dims(self) -> Mapping[str, Dim]:
        """The declared ranges."""
        ...

    def convert(self, path: Path, *, sizes: Mapping[str, int], symbolic: bool = False) -> None:
        """Write the file: one signature for each combination of the contract's sizes.

        sizes: for dims that the contract does not fix. symbolic: carry these through the graph as symbols instead.
        Raises StepError.
        """
        ...

    def disproved(self, path: Path, threads: int) -> str:
        """Where the file does not answer as the model does, over min, opt, max and an odd size of each dim; or ""."""
        ...

    def with_contract(self, agreed: Contract) -> Conversion:
        """The same, of another contract."""
        ...


def contract(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], dims: Mapping[str, Dim], options: TfliteOptions
) -> Contract:
    """What is asked for, checked. Dims that do not vary are fixed. Raises StepError."""
    turned = [spec.name for spec in inputs if options.layout == "NHWC" and spec.layout in CHANNELS_FIRST]
    if options.layout == "NHWC" and not turned:
        raise StepError("no input is declared with layout: NCHW, so none can become NHWC", subject="with.layout",
                        hint="inputs: {image: {shape: [batch, 3, 224, 224], layout: NCHW}}")  # fmt: skip
    for name in options.channels_last_outputs:
        spec = next((spec for spec in outputs if spec.name == name), None)
        if spec is None or len(spec.shape or ()) < 3:
            raise StepError(f"{name!r} is no output of three or more axes", subject="with.channels_last_outputs",
                            hint=did_you_mean(name, [spec.name for spec in outputs]))  # fmt: skip
        turned.append(name)
    fixed = {name: dims[name].max for name in dims if name not in dynamic_dims(inputs, dims)}
    plain = [replace(s, shape=static_shape(s, dims)) for s in inputs]
    given = [
        replace(s, shape=tuple(fixed.get(d, d) if isinstance(d, str) else d for d in s.shape) if s.shape else s.shape)
        for s in outputs
    ]
    return Contract(tuple(plain), tuple(given), {}, options.pad, tuple(turned))


def converted(
    conversion: Conversion, varying: Sequence[str], options: TfliteOptions, context: Context
) -> tuple[Path, dict[str, Any]]:
    """The file that holds, in scratch, and how each dim varies in it. Raises StepError when none does."""
    for name in options.sizes:
        if name not in varying:
            raise StepError(f"{name!r} in with.sizes is no dim that varies", subject="with.sizes",
                            hint=did_you_mean(name, varying) or "leave it out")  # fmt: skip
    path = context.scratch / "candidate.tflite"
    if not varying:
        conversion.convert(path, sizes={})
        _must_hold(conversion, path, context)
        return path, {}
    reasons: list[str] = []
    if not options.sizes and options.dynamic != "sizes":
        for symbolic in (True, False):
            reason = _resizes(conversion, path, symbolic, varying, context)
            if not reason:
                return path, dict.fromkeys(varying, "resize")
            reasons.append(reason)
    return _with_sizes(conversion, path, varying, options, context, reasons)


def _resizes(conversion: Conversion, path: Path, symbolic: bool, varying: Sequence[str], context: Context) -> str:
    """Why one graph does not serve every size; "" where it does, and the file is there.

    symbolic: traced with dims as symbols; else at the smallest sizes, after which most convolutional graphs resize.
    """
    dims = conversion.dims
    sizes = {name: max(2, dims[name].min) + (1 if dims[name].max > 2 else 0) if symbolic else dims[name].min
             for name in varying}  # fmt: skip
    sizes = {name: min(n, dims[name].max) for name, n in sizes.items()}
    try:
        conversion.convert(path, sizes=sizes, symbolic=symbolic)
    except StepError as error:
        if not symbolic or error.what.startswith("TFLite has no"):
            raise  # nothing to do with the dims
        return error.what
    context.progress("try other sizes", None)
    return conversion.disproved(path, context.threads)


def _with_sizes(
    conversion: Conversion,
    path: Path,
    varying: Sequence[str],
    options: TfliteOptions,
    context: Context,
    reasons: Sequence[str],
) -> tuple[Path, dict[str, Any]]:
    """A signature for each combination of sizes."""
    agreed, dims = conversion.agreed, conversion.dims
    batch = batch_of(agreed.inputs, agreed.outputs)
    why = f": {reasons[-1]}" if reasons else ""
    wanted = dict(options.sizes)
    if options.dynamic == "resize":
        raise StepError(f"dim {varying[0]!r} cannot be resized at run time{why}", subject=f"dims.{varying[0]}",
                        details="\n".join(reasons), hint="dynamic: sizes, or make it static")  # fmt: skip
    for name in varying:
        dim = dims[name]
        _check_rows(name, batch, agreed, dim, why)
        if name not in wanted and name == batch:
            wanted[name] = tuple(dict.fromkeys((dim.min, dim.opt)))
        if name not in wanted:
            raise StepError(
                f"dim {name!r} cannot vary freely in a TFLite file{why}",
                subject=f"dims.{name}",
                details="\n".join(reasons),
                hint=f"with: {{sizes: {{{name}: [{dim.opt}, {dim.max}]}}, pad: [{name}]}} pads to these sizes, for a "
                f"model with a mask; or write {dim.max} in its place",
            )
        if name != batch and name not in options.pad:
            raise StepError(
                f"the file would hold {name} at {', '.join(map(str, wanted[name]))} alone, and it is declared "
                f"{dim.min}..{dim.max}",
                subject=f"dims.{name}",
                hint=f"with: {{pad: [{name}]}}, for a model with a mask; or write {dim.max} in its place",
            )
        if name in options.pad and max(wanted[name]) < dim.max:
            raise StepError(f"the largest size of {name} is {max(wanted[name])}, and it is declared up to {dim.max}",
                            subject="with.sizes", hint=f"add {dim.max}")  # fmt: skip
    order = {name: tuple(sorted(wanted[name])) for name in varying}
    conversion = conversion.with_contract(replace(agreed, sizes=order))
    conversion.convert(path, sizes={})
    context.progress("try other sizes", None)
    _must_hold(conversion, path, context)
    return path, {name: list(sizes) for name, sizes in order.items()}


def _check_rows(name: str, batch: str | None, agreed: Contract, dim: Dim, why: str) -> None:
    """Raises StepError for a dim that counts the samples going in, but not those of every output."""
    first = [(spec.shape or (None,))[0] for spec in agreed.inputs]
    if name == batch or set(first) != {name}:
        return
    other = [spec.name for spec in agreed.outputs if (spec.shape or (None,))[0] != name]
    if other:
        raise StepError(
            f"dim {name!r} cannot vary in a TFLite file{why}; and it cannot be put together from smaller ones, as "
            f"output {other[0]!r} does not begin with {name}",
            subject=f"dims.{name}",
            hint=f"make it static: write {dim.opt} in its place",
        )


def _must_hold(conversion: Conversion, path: Path, context: Context) -> None:
    wrong = conversion.disproved(path, context.threads)
    if wrong:
        padded = conversion.agreed.padded
        raise StepError(
            f"the TFLite file is not the model: {wrong}",
            subject="with.pad" if padded else "model",
            hint=f"{padded[0]} has no mask that hides padding: make it static" if padded else
                 "deliver ONNX or OpenVINO instead",
        )  # fmt: skip


def complaints_of(artifact: Artifact, options: TfliteOptions, context: Context) -> list[str]:
    """Re-reads the file: names, dtypes and layout as asked, and that it runs at the ends of every declared range."""
    model = tflite_model.read(artifact.path)
    agreed = tflite_model.recorded(model)
    if agreed is None:
        return ["the file holds no contract: its dims have no names"]
    complaints = tflite_look.differences(model, agreed, tflite_session.combinations(agreed))
    names, wanted = [spec.name for spec in agreed.inputs], [spec.name for spec in context.inputs]
    if names != wanted:
        complaints.append(f"the inputs are {', '.join(names)}, not {', '.join(wanted)}")
    for got, spec in zip(agreed.inputs, context.inputs, strict=False):
        shape = static_shape(spec, context.dims)
        if got.dtype != spec.dtype or got.shape != shape:
            complaints.append(f"input {spec.name!r} is {got}, not {spec.dtype}[{', '.join(map(str, shape))}]")
        if (spec.name in agreed.channels_last) != (options.layout == "NHWC" and spec.layout in CHANNELS_FIRST):
            complaints.append(f"input {spec.name!r} is not {options.layout} in the file")
    names = [spec.name for spec in agreed.outputs]
    if context.outputs and names != list(context.outputs):
        complaints.append(f"the outputs are {', '.join(names)}, not {', '.join(context.outputs)}")
    try:
        return complaints or _runs(artifact.path, agreed, context)
    except SourceError as error:
        return [error.what]


def _runs(path: Path, agreed: Contract, context: Context) -> list[str]:
    """What goes wrong when the file is run at min and at max of its dims: an error, or an output of another shape."""
    import numpy as np

    complaints = []
    names = dict.fromkeys(d for spec in agreed.inputs for d in spec.dynamic)
    with tflite_session.open_session(path, agreed, context.threads) as session:
        for end in ("min", "max"):
            sizes = {name: getattr(context.dims[name], end) for name in names}
            feeds = {s.name: np.ones(s.resolved(sizes), _numpy(s.dtype)) for s in agreed.inputs}
            try:
                got = session.infer(feeds)
            except StepError as error:
                complaints.append(f"at {end} of its dims ({sizes}): {error.what}")
                continue
            for spec in agreed.outputs:
                for axis, dim in enumerate(spec.shape or ()):
                    size = sizes.get(dim, got[spec.name].shape[axis]) if isinstance(dim, str) else dim
                    if got[spec.name].ndim != len(spec.shape or ()) or got[spec.name].shape[axis] != size:
                        complaints.append(f"at {sizes} output {spec.name!r} has shape {got[spec.name].shape}")
                        break
    return complaints


def _numpy(dtype: str) -> Any:
    import numpy as np

    if dtype == "bfloat16":
        return need("ml_dtypes").bfloat16
    return np.dtype(dtype)


TOLERANCE = 1e-3
"""Of the largest output: float32 kernels that sum in another order stay far below, a wrong reshape far above."""


def agree(found: Any, told: Any) -> bool:
    """Whether an output has the shape and, to the rounding of float32 kernels, the values of another."""
    import numpy as np

    if found.shape != told.shape:
        return False
    scale = float(np.abs(told, where=np.isfinite(told), out=np.zeros(told.shape)).max(initial=0))
    return bool(np.allclose(found.astype(told.dtype), told, rtol=0, atol=TOLERANCE * scale, equal_nan=True))


def disproved(
    path: Path,
    agreed: Contract,
    dims: Mapping[str, Dim],
    threads: int,
    ask: Callable[[Mapping[str, int]], tuple[Tensors, Tensors]],
) -> str:
    """Where the file does not answer as the model does, over min, opt, max and an odd size of each dim; or "".

    ask: inputs of some sizes, and what the model answers to them.
    """
    names = dict.fromkeys(d for spec in agreed.inputs for d in static_shape(spec, dims) if isinstance(d, str))
    sizes = tflite_session.visited({name: dims[name].sizes for name in names})
    with ExitStack() as stack:
        try:
            session = stack.enter_context(tflite_session.open_session(path, threads=threads))
        except SourceError as error:  # it cannot even be prepared at its own sizes
            return error.what
        for at in sizes:
            where = ", ".join(f"{name}={n}" for name, n in at.items()) or "its fixed sizes"
            feeds, wanted = ask(at)
            try:
                got = session.infer(feeds)
            except StepError as error:
                return f"at {where}: {error.what}"
            for name, told in wanted.items():
                if got[name].shape != told.shape:
                    return f"at {where} output {name!r} has shape {got[name].shape}, the model's has {told.shape}"
                if not agree(got[name], told):
                    return f"at {where} output {name!r} differs from the model's"
    return ""


def batch_of(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str | None:
    """The dim that counts samples: axis 0 of every input and output, and no other axis of any; or None."""
    shapes = [spec.shape or (None,) for spec in (*inputs, *outputs)]
    name = shapes[0][0]
    if not isinstance(name, str) or any(shape[0] != name or name in shape[1:] for shape in shapes):
        return None
    return name
