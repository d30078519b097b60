"""From a torch model to a torch.export program whose dims vary exactly as the recipe declares, or an error."""

from __future__ import annotations

import linecache
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from optkit.artifact import Dim, TensorSpec
from optkit.errors import SourceError, StepError
from optkit.formats.torch.experts import batched_experts
from optkit.formats.torch.feeds import choose_sizes, dynamic_dims, example_feeds, static_shape
from optkit.formats.torch.files import quiet
from optkit.formats.torch.guards import Guard, Traced, explain, fails_somewhere, quiet_failure, recorded_guards, refusal
from optkit.formats.torch.rewrite import rewrite
from optkit.plugin import need

if TYPE_CHECKING:
    from optkit.formats.torch.call import TorchModel

# What torch warns of whenever TorchScript is used: that it is old.
ABOUT_TORCHSCRIPT = (
    "`torch.jit.",
    "You are using the legacy TorchScript-based ONNX export",
    "The feature will be removed. Please remove usage of this function",
    "no signature found for <torch.ScriptMethod",
)


def dynamic_shapes(inputs: Sequence[TensorSpec], dims: Mapping[str, Dim]) -> list[dict[int, Any]]:
    """What torch.export wants: per input, axis to `torch.export.Dim`; inputs that share a name share the Dim."""
    made = {
        name: need("torch").export.Dim(
            name if name.isidentifier() else f"dim_{index}", min=dims[name].min, max=dims[name].max
        )
        for index, name in enumerate(dynamic_dims(inputs, dims))
    }
    return [{axis: made[d] for axis, d in enumerate(static_shape(spec, dims)) if isinstance(d, str)} for spec in inputs]


def runnable_feeds(
    model: TorchModel,
    inputs: Sequence[TensorSpec],
    dims: Mapping[str, Dim],
    *,
    unlike: Mapping[str, int] | None = None,
    seed: int = 0,
) -> tuple[dict[str, int], dict[str, Any]]:
    """Sizes and example inputs that the model really takes: small ones, or else the declared min, opt and max.

    Raises SourceError, for the first sizes tried, when it takes neither.
    """
    first: SourceError | None = None
    for declared in (False, True):
        sizes = choose_sizes(inputs, dims, unlike=unlike, declared=declared)
        feeds = example_feeds(inputs, dims, sizes, seed)
        try:
            model.call(feeds)
        except SourceError as error:
            first = first or error
            continue
        return sizes, feeds
    assert first is not None
    raise first


def export(model: TorchModel, inputs: Sequence[TensorSpec], dims: Mapping[str, Dim]) -> Any:
    """The `torch.export.ExportedProgram` of a model: inputs and outputs flat, in `model`'s order.

    Every declared dim that varies is one symbol over the whole declared range, in every input that has it; no other
    axis is symbolic. Sizes below 2, which torch takes to be like any other, are tried against the model.
    Raises StepError that names the dim, the condition and the model's line; SourceError where the model does not run.
    """
    torch = need("torch")
    if model.scripted:
        raise StepError(
            "torch.export cannot read TorchScript",
            subject="with.exporter",
            hint="`with: {exporter: torchscript}` on a conversion to ONNX, or convert to OpenVINO",
        )
    check_ranges(model, inputs, dims)
    sizes, feeds = runnable_feeds(model, inputs, dims)
    traced = Traced(inputs, dims, model.parameters, sizes)
    shapes = dynamic_shapes(inputs, dims)
    guards: list[Guard] = []
    try:
        with recorded_guards(guards), quiet(), quiet_failure(), torch.no_grad(), batched_experts(model.module):
            program = torch.export.export(model.module, tuple(feeds.values()), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch raises many kinds, most of them private
        raise explain(error, guards, traced) from error
    rewrite(program)
    _check_symbols(program, traced)
    _check_smallest(model, program, traced)
    return program


def symbols(program: Any, inputs: Sequence[TensorSpec]) -> dict[str, str]:
    """Symbol in an exported program ("s77") to the declared dim it stands for ("batch"); inputs in its own order."""
    found = {}
    for spec, value in zip(inputs, _user_inputs(program), strict=True):
        for name, size in zip(spec.shape or (), value.shape, strict=True):
            if isinstance(name, str) and not isinstance(size, int):
                found[str(size.node.expr)] = name
    return found


def own_symbols(model: TorchModel, inputs: Sequence[TensorSpec]) -> dict[str, str]:
    """`symbols` of the exported program a model was loaded from, whose inputs may be in another order."""
    return symbols(model.exported, sorted(inputs, key=lambda spec: model.source.takes.index(spec.name)))


def check_ranges(model: TorchModel, inputs: Sequence[TensorSpec], dims: Mapping[str, Dim]) -> None:
    """Raises SourceError where an exported program holds for less than the declared range of a dim."""
    if model.exported is None:
        return
    limits = {str(symbol): limit for symbol, limit in model.exported.range_constraints.items()}
    for symbol, name in own_symbols(model, inputs).items():
        dim, limit = dims.get(name), limits.get(symbol)
        if dim and limit is not None and not (limit.lower <= max(dim.min, 2) and dim.max <= limit.upper):
            raise SourceError(
                f"dim {name!r} is declared {dim.min}..{dim.max}, but the program was exported for "
                f"{limit.lower}..{limit.upper}",
                subject=f"dims.{name}",
                hint="narrow its range, or export again with a wider one",
            )


def _user_inputs(program: Any) -> list[Any]:
    """The example (fake) tensors of a program's own inputs, in order."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    return [values[name] for name in program.graph_signature.user_inputs if isinstance(name, str)]


def _check_symbols(program: Any, traced: Traced) -> None:
    """Raises StepError where an axis is not what was declared; torch can make a dim static without an error."""
    seen: dict[str, str] = {}
    for spec, value in zip(traced.inputs, _user_inputs(program), strict=True):
        for axis, (declared, size) in enumerate(zip(static_shape(spec, traced.dims), value.shape, strict=True)):
            if isinstance(declared, int):
                continue
            expression = None if isinstance(size, int) else size.node.expr
            if expression is None or not expression.is_Symbol:
                raise StepError(
                    f"axis {axis} of input {spec.name!r} is declared as {declared!r} but came out as {size}",
                    subject=f"inputs.{spec.name}",
                    hint=f"declare it static, or as its own dim beside {declared}",
                )
            if seen.setdefault(declared, str(expression)) != str(expression):
                raise StepError(
                    f"dim {declared!r} came out as two sizes that need not be equal",
                    subject=f"dims.{declared}",
                    hint="give the axes two names",
                )
            limits, dim = program.range_constraints.get(expression), traced.dims[declared]
            if limits is not None and not (limits.lower <= max(dim.min, 2) and dim.max <= limits.upper):
                raise StepError(
                    f"dim {declared!r} is declared {dim.min}..{dim.max}, but the program holds for "
                    f"{limits.lower}..{limits.upper} only",
                    subject=f"dims.{declared}",
                    hint="narrow its range",
                )


def _check_smallest(model: TorchModel, program: Any, traced: Traced) -> None:
    """Runs program and model where a dim is 1, which tracing takes for any other size but a model need not.

    Raises StepError with the line that looks at the size, found by tracing once more without that assumption.
    """
    torch = need("torch")
    small = [name for name in traced.sizes if traced.dims[name].min == 1]
    if not small:
        return
    module = program.module(check_guards=False)
    combinations = [[name] for name in small] + ([small] if len(small) > 1 else [])
    for names in combinations:
        sizes = {**traced.sizes, **dict.fromkeys(names, 1)}
        feeds = example_feeds(traced.inputs, traced.dims, sizes, seed=1)
        wanted = tuple(model.call(feeds).values())
        at = ", ".join(f"{name}=1" for name in names)
        try:
            with torch.no_grad():
                got = module(*(feed.clone() for feed in feeds.values()))
        except Exception as error:  # the graph runs into a shape it was not made for
            raise _smallest_error(model, traced, names, f"{type(error).__name__}: {error}") from error
        if not all(_agree(a, b) for a, b in zip(wanted, got, strict=True)):
            raise _smallest_error(
                model, traced, names, f"the exported graph gives another result than the model at {at}"
            )


def _agree(wanted: Any, got: Any) -> bool:
    """The same operators in the same order: float32 results differ by no more than a few roundings."""
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        return False
    if not wanted.dtype.is_floating_point:
        return bool((wanted == got).all())
    scale = wanted.double().abs().nan_to_num(0, 0, 0).max().item() if wanted.numel() else 0.0
    return bool(need("torch").allclose(wanted.double(), got.double(), rtol=0, atol=1e-3 * scale, equal_nan=True))


def _smallest_error(model: TorchModel, traced: Traced, names: Sequence[str], problem: str) -> StepError:
    torch = need("torch")
    config = need("torch.fx.experimental._config", "torch")
    feeds = example_feeds(traced.inputs, traced.dims, traced.sizes)
    guards: list[Guard] = []
    with (
        suppress(Exception),  # it is the guards that are wanted; that this fails is the rule
        recorded_guards(guards),
        quiet(),
        quiet_failure(),
        torch.no_grad(),
        config.patch(backed_size_oblivious=True),
    ):
        torch.export.export(
            model.module,
            tuple(feeds.values()),
            strict=False,
            dynamic_shapes=dynamic_shapes(traced.inputs, traced.dims),
        )
    culprits = [(g, at) for g in guards if (at := fails_somewhere(g, traced, smallest=1)) and 1 in at.values()]
    own = [(g, at) for g, at in culprits if g.frame is not None]
    if own or culprits:
        return refusal(own or culprits, traced, problem)
    return StepError(
        f"dim {' and '.join(map(repr, names))} cannot be 1: {problem}",
        subject=f"dims.{names[0]}",
        hint=f"set dims.{names[0]}.min to 2, or make it static",
    )


# ------------------------------------------------------------------------------------------------ TorchScript


@contextmanager
def baked_in(warned: list[str]) -> Iterator[None]:
    """TorchScript tracing without its deprecation warnings; other warnings are added to `warned`.

    Raises StepError where it warns that the trace will keep one way through a decision.
    """
    torch = need("torch")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        text = str(warning.message).strip().splitlines()[0]
        if issubclass(warning.category, torch.jit.TracerWarning):
            if _only_checks(warning.filename, warning.lineno):
                continue
            raise StepError(
                "tracing keeps one way through a decision, at "
                f"{warning.filename}:{warning.lineno}: {text.split('. ')[0]}",
                subject="with.exporter",
                details=str(warning.message),
                hint="leave out `exporter: torchscript`, or use torch.where in place of the Python if",
            )
        if not text.startswith(ABOUT_TORCHSCRIPT):
            warned.append(text)


def _only_checks(file: str, line: int) -> bool:
    """Whether the Python decision at a line is an assert, or an if that only raises: a trace may keep its other way."""
    here = linecache.getline(file, line).strip()
    below = next(
        (text for n in range(1, 4) if (text := linecache.getline(file, line + n).strip()) not in {"", "):"}), ""
    )
    return here.startswith(("assert ", "torch._assert(", "torch._check(")) or (
        here.startswith(("if ", "elif ")) and below.startswith("raise ")
    )


def trace(
    model: TorchModel, inputs: Sequence[TensorSpec], dims: Mapping[str, Dim], warned: list[str]
) -> tuple[Any, dict[str, Any]]:
    """The model as traced TorchScript with flat inputs and outputs, and the example inputs it was traced with.

    Scripted parts keep their control flow. warned: is given what torch warns of. Raises StepError where tracing would
    keep one way through a decision.
    """
    torch = need("torch")
    _, feeds = runnable_feeds(model, inputs, dims)
    try:
        with baked_in(warned), torch.no_grad(), batched_experts(model.module):
            return torch.jit.trace(model.module, tuple(feeds.values()), check_trace=False), feeds
    except RuntimeError as error:
        raise StepError(
            f"TorchScript cannot trace the model: {str(error).strip().splitlines()[0]}",
            subject="model",
            details=str(error),
            hint="leave out `exporter: torchscript`",
        ) from error
