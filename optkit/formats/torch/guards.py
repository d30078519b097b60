"""Why torch.export refused a dynamic dim: which line of the model decided on its size, and what it decided.

torch keeps that as guards in its ShapeEnv and forgets the lines; they are written down here as the guards are made.
"""

from __future__ import annotations

import itertools
import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optkit.artifact import Dim, TensorSpec
from optkit.errors import StepError
from optkit.formats.torch.files import WRAPPED, place, user_frame
from optkit.plugin import need

PLUMBING = ("/module.py", "/container.py")  # of torch.nn: they call layers and decide nothing
SOURCE = re.compile(r"L\['(\w+)'\]\.size\(\)\[(\d+)\]")


@dataclass(frozen=True)
class Guard:
    """A condition on sizes that tracing took for granted; sources: symbol to "L['x'].size()[0]"."""

    condition: Any
    sources: Mapping[str, str]
    frame: traceback.FrameSummary | None


@contextmanager
def recorded_guards(guards: list[Guard]) -> Iterator[None]:
    """Adds the guards torch.export makes meanwhile to `guards`, each with the model's line that was running."""
    env = need("torch.fx.experimental.symbolic_shapes", "torch").ShapeEnv
    original = env._log_guard

    def log_guard(self: Any, prefix: str, condition: Any, *args: Any, **kwargs: Any) -> Any:
        symbols = {
            str(symbol): source for source, symbol in self.source_to_var.items() if symbol in condition.free_symbols
        }
        guards.append(Guard(condition, symbols, _running_line()))
        return original(self, prefix, condition, *args, **kwargs)

    env._log_guard = log_guard
    try:
        yield
    finally:
        env._log_guard = original


def _running_line() -> traceback.FrameSummary | None:
    """The innermost running frame of the model's own code, or else of torch's layers; optkit's own is where it ends."""
    torch_home, home = need("torch").__path__[0], str(Path(__file__).parents[2])
    layer = None
    frame = sys._getframe(2)
    while frame is not None and not frame.f_code.co_filename.startswith(home):
        file = frame.f_code.co_filename
        if not file.startswith((torch_home, "<")):
            return _summary(frame)
        if layer is None and file.startswith(f"{torch_home}/nn/") and not file.endswith(PLUMBING):
            layer = _summary(frame)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return layer


def _summary(frame: Any) -> traceback.FrameSummary:
    return traceback.FrameSummary(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


@contextmanager
def quiet_failure() -> Iterator[None]:
    """Without what torch.export prints and logs when it fails: the unfinished graph, a traceback, symbols' names.

    What it fails with is in its exception.
    """
    logs = [
        logging.getLogger(f"torch.{name}") for name in ("fx.experimental.symbolic_shapes", "_subclasses.fake_tensor")
    ]
    noise = ("Unable to find user code", "failed during evaluate_expr", "fake tensor raised")
    held = _Held(sys.stderr)

    def wanted(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(noise)

    for log in logs:
        log.addFilter(wanted)
    sys.stderr, before = held, sys.stderr
    try:
        yield
    except Exception as error:
        held.drop(str(getattr(error, "partial_fx_graph", "\0")))
        raise
    finally:
        sys.stderr = before
        for log in logs:
            log.removeFilter(wanted)
        held.release()


class _Held:
    """A stream that keeps what is written until `release`."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.text = stream, ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def drop(self, text: str) -> None:
        self.text = self.text.replace(text, "").strip("\n")

    def release(self) -> None:
        if self.text:
            self.stream.write(self.text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


# ------------------------------------------------------------------------------------------------ explaining


@dataclass(frozen=True)
class Traced:
    """What was traced: the parameters' names as torch saw them, in the inputs' order, and the sizes of the examples."""

    inputs: Sequence[TensorSpec]
    dims: Mapping[str, Dim]
    parameters: Sequence[str]
    sizes: Mapping[str, int]

    def dim_of(self, source: str) -> str | None:
        """The declared dim behind "L['x'].size()[0]"."""
        match = SOURCE.fullmatch(source)
        if match is None or match[1] not in self.parameters:
            return None
        shape = self.inputs[list(self.parameters).index(match[1])].shape or ()
        name = shape[int(match[2])] if int(match[2]) < len(shape) else None
        return name if isinstance(name, str) and name in self.sizes else None


def fails_somewhere(guard: Guard, traced: Traced, *, smallest: int = 2) -> dict[str, int] | None:
    """Sizes within the declared ranges, from `smallest` up, at which the guard fails; None if it never does."""
    sympy = need("sympy", "torch")
    symbols = {s: traced.dim_of(guard.sources.get(str(s), "")) for s in guard.condition.free_symbols}
    if not symbols or None in symbols.values():
        return None
    names = sorted({str(name) for name in symbols.values()})
    options = []
    for name in names:
        dim, size = traced.dims[name], traced.sizes[name]
        near = {dim.min, dim.min + 1, dim.opt, dim.max - 1, dim.max, size, size + 1, 2, smallest}
        options.append(sorted(n for n in near if max(dim.min, smallest) <= n <= dim.max))
    for combination in itertools.product(*options):
        at = dict(zip(names, combination, strict=True))
        if guard.condition.xreplace({s: sympy.Integer(at[str(n)]) for s, n in symbols.items()}) == sympy.false:
            return at
    return None


def written(guard: Guard, traced: Traced) -> str:
    """The condition in the recipe's names: `batch <= 4`."""
    sympy = need("sympy", "torch")
    printer = need("torch.utils._sympy.printers", "torch").PythonPrinter()
    names = {
        s: sympy.Symbol(traced.dim_of(guard.sources.get(str(s), "")) or str(s), integer=True)
        for s in guard.condition.free_symbols
    }
    return str(printer.doprint(guard.condition.xreplace(names)))


def node_place(error: BaseException) -> str:
    """Module path and line of the graph node an exporter was at when it failed, "in layers.0 at model.py:12"; or "".

    The node itself is in the frames the exception went through.
    """
    node = None
    step = error.__traceback__
    while step is not None:
        found = step.tb_frame.f_locals.get("node")
        node = found if hasattr(found, "meta") and hasattr(found, "target") else node
        step = step.tb_next
    return _made_at(node) if node is not None else ""


def program_places(program: Any, operators: Sequence[str]) -> dict[str, str]:
    """Where the first of each operator ("aten.svd.default") of a program, or of it decomposed, is made."""
    found: dict[str, str] = {}
    for decompose in (False, True):
        if set(operators) <= set(found):
            break
        for node in (program.run_decompositions() if decompose else program).graph.nodes:
            if node.op == "call_function" and str(node.target) in operators and (place := _made_at(node)):
                found.setdefault(str(node.target), place)
    return found


def _made_at(node: Any) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = re.sub(rf"^(L\['self'\])?\.?({WRAPPED}\.?)*", "", str(stack[-1][0])) if stack else ""
    # Code that torch itself generates ("<eval_with_key>") is no place in anybody's model.
    lines = re.findall(r'File "([^"<]+)", line (\d+), in (\w+)', node.meta.get("stack_trace") or "")
    own = [line for line in lines if not line[0].startswith(need("torch").__path__[0])]
    at = "at {}:{} in {}".format(*(own or lines)[-1]) if lines else ""
    return " ".join(part for part in (f"in {path}" if path else "", at) if part)


def explain(error: Exception, guards: Sequence[Guard], traced: Traced) -> StepError:
    """What an exception of torch.export means in the recipe's terms."""
    text = str(error)
    if "Constraints violated" in text:
        culprits = [(g, at) for g in guards if (at := fails_somewhere(g, traced))]
        if culprits:
            return refusal(culprits, traced, text)
        said = [line.strip(" -") for line in text.splitlines() if line.startswith("  - ")]
        names = re.findall(r"\w+", (re.search(r"Constraints violated \(([^)]*)\)", text) or ["", ""])[1])
        return StepError(
            f"dim {' and '.join(map(repr, names))} cannot vary as declared: {said[0] if said else text}",
            subject=f"dims.{names[0]}" if names else "dims",
            details="\n".join(said),
            hint="narrow its range, make it static, or give dims that must be equal one name",
        )
    where = place(user_frame(error))
    if type(error).__name__ in {"GuardOnDataDependentSymNode", "DataDependentOutputException"}:
        return StepError(
            f"the model's control flow depends on the values in a tensor, at {where or 'an unknown line'}",
            subject="model",
            details=text.strip().splitlines()[0],
            hint="use torch.where, or torch.cond with both branches, in place of a Python if or int()",
        )
    first = text.strip().splitlines()[0] if text.strip() else ""
    return StepError(
        f"torch.export cannot trace the model: {type(error).__name__}: {first}" + (f", at {where}" if where else ""),
        subject="model",
        details=text,
        hint="make that line traceable, or try `use: torch.to_onnx, with: {exporter: torchscript}`",
    )


def refusal(culprits: Sequence[tuple[Guard, Mapping[str, int]]], traced: Traced, text: str = "") -> StepError:
    """The error for guards that fail within the declared ranges: the first is told in full, the rest in details."""
    guard, at = culprits[0]
    names, said = list(at), written(guard, traced)
    ranges = " and ".join(f"{n!r} ({traced.dims[n].min}..{traced.dims[n].max})" for n in names)
    where = f", decided at {place(guard.frame)}" if guard.frame else ""
    lines = [
        f"`{written(g, traced)}` fails at {', '.join(f'{n}={v}' for n, v in a.items())}: {place(g.frame)}"
        for g, a in culprits
    ]
    return StepError(
        f"dim {ranges} cannot vary as declared: the traced graph holds only where `{said}`{where}",
        subject=f"dims.{names[0]}",
        details="\n".join([*lines, *text.splitlines()[:1]]),
        hint=_hint(guard, names, said, traced),
    )


def _hint(guard: Guard, names: Sequence[str], said: str, traced: Traced) -> str:
    kind = type(guard.condition).__name__
    if len(names) > 1:
        return f"give {' and '.join(names)} one name if they are always equal, or make one of them static"
    if kind == "Equality" and "%" not in said:
        return (
            f"make {names[0]} static (write {traced.sizes[names[0]]} in the shape), or don't turn the size into a "
            "Python constant there; LSTM and GRU need `use: torch.to_onnx, with: {exporter: torchscript}`"
        )
    if "%" in said or kind == "Unequality":
        return f"make {names[0]} static, or write the line so that it does not depend on the size"
    return f"set dims.{names[0]} to the range in which `{said}`, or use torch.where or torch.cond in place of the if"
