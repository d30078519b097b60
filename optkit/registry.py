"""Names to passes and runners: a plain table, plus what installed packages add through entry points.

A third party adds a pass or a runner with an entry point in the group `optkit.passes` or `optkit.runners`, whose value
is a `Pass` or `Runner` constant.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Iterable
from functools import cache
from typing import TypeVar, get_args

from pydantic import ValidationError

from optkit.envs import environments
from optkit.errors import UnavailableError, UserError, did_you_mean
from optkit.plugin import Fidelity, Options, Pass, Runner

T = TypeVar("T", Pass, Runner)

PRECISIONS = ("float64", "float32", "float16", "bfloat16")
"""What a pass may compute in, finest first."""

_PASSES = (
    "torch_to_onnx",
    "torch_to_openvino",
    "torch_prune",
    "torch_distill",
    "torch_train",
    "torch_qat",
    "onnx_simplify",
    "onnx_optimize_transformer",
    "onnx_fp16",
    "onnx_quantize",
    "onnx_compress_weights",
    "onnx_to_openvino",
    "onnx_to_tensorrt",
    "openvino_fp16",
    "openvino_quantize",
    "openvino_compress_weights",
    "torch_to_tflite",
    "onnx_to_tflite",
    "onnx_to_savedmodel",
    "tflite_quantize",
    "tflite_to_openvino",
    "tflite_to_edgetpu",
    "keras_to_savedmodel",
    "keras_to_tflite",
    "keras_to_openvino",
    "savedmodel_to_tflite",
    "savedmodel_to_onnx",
    "savedmodel_to_openvino",
    "tf_graph_to_savedmodel",
    "tf_graph_to_onnx",
    "tf_graph_to_tflite",
    "tf_graph_to_openvino",
)

# A format whose suffix is part of another's ("_edgetpu.tflite") goes before that.
_RUNNERS = ("torch_runner", "onnx_runner", "openvino_runner", "tensorrt_runner", "edgetpu_runner", "tflite_runner",
            "savedmodel_runner", "keras_runner", "tf_graph_runner")  # fmt: skip


class NoRouteError(UserError):
    """No chain of conversions leads from one format to the other, or two equally short ones do."""


@cache
def passes() -> dict[str, Pass]:
    """Every pass by name. Loads no backend. Raises UnavailableError for a broken plug-in."""
    found: dict[str, Pass] = {
        p.name: p for p in (importlib.import_module(f"optkit.passes.{name}").PASS for name in _PASSES)
    }
    for place, item in _plugged("optkit.passes", Pass):
        if item.name in found:
            raise _broken(place, f"there is another pass called {item.name!r}", "rename one, or uninstall the plug-in")
        if problem := _pass_problem(item):
            raise _broken(place, problem, "correct the pass; optkit.plugin.Pass says what it must hold")
        found[item.name] = item
    return found


@cache
def runners() -> dict[str, Runner]:
    """Every runner by format. Loads no backend. Raises UnavailableError for a broken plug-in."""
    found: dict[str, Runner] = {
        r.format: r for r in (importlib.import_module(f"optkit.runners.{name}").RUNNER for name in _RUNNERS)
    }
    for place, item in _plugged("optkit.runners", Runner):
        if item.format in found:
            raise _broken(
                place, f"another runner serves {item.format!r}", "rename its format, or uninstall the plug-in"
            )
        found[item.format] = item
    return found


def _plugged(group: str, kind: type[T]) -> Iterable[tuple[str, T]]:
    """What installed packages add to a group: the place it is at, and the constant."""
    for point in importlib.metadata.entry_points(group=group):
        place = f"{point.value} ({group})"
        try:
            item = point.load()
        except (Exception, SystemExit) as error:  # somebody else's module may fail in any way
            what = f"it cannot be loaded: {type(error).__name__}: {error}"
            raise _broken(place, what, f"reinstall or remove the package that brings {point.name!r}") from error
        if not isinstance(item, kind):
            what = f"it is a {type(item).__name__}, not a {kind.__name__}"
            raise _broken(place, what, f"its entry point must name a {kind.__name__} constant")
        yield place, item


def _broken(place: str, what: str, hint: str) -> UnavailableError:
    return UnavailableError(f"the plug-in {place} is broken: {what}", hint=hint, code="OPK-402")


def _pass_problem(item: Pass) -> str:
    """What of a pass's data cannot be right, or ""."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", item.name):
        return f"{item.name!r} cannot name a pass"
    if item.fidelity not in get_args(Fidelity):
        return f"fidelity {item.fidelity!r} is none of {', '.join(get_args(Fidelity))}"
    if item.precision not in (None, *PRECISIONS):
        return f"precision {item.precision!r} is none of {', '.join(PRECISIONS)}"
    if unknown := item.keeps - {"names", "dtypes", "dims"}:
        return f"keeps {', '.join(sorted(unknown))}, which is none of names, dtypes, dims"
    if item.environment is not None and item.environment not in environments.known():
        return f"it wants the environment {item.environment!r}; optkit has {', '.join(environments.known())}"
    options: object = item.options
    if not (isinstance(options, type) and issubclass(options, Options)):
        return f"its options are {options!r}, not a subclass of optkit.plugin.Options"
    return ""


def get_pass(name: str) -> Pass:
    """The pass of that name. Raises UserError with the nearest name."""
    try:
        return passes()[name]
    except KeyError:
        raise UserError(f"unknown pass {name!r}", hint=did_you_mean(name, passes())) from None


def get_runner(format_name: str) -> Runner:
    """The runner for a format. Raises UserError with the nearest name."""
    try:
        return runners()[format_name]
    except KeyError:
        raise UserError(f"unknown format {format_name!r}", hint=did_you_mean(format_name, formats())) from None


def formats() -> tuple[str, ...]:
    """Every format a runner or a pass knows, sorted."""
    ends = {end for p in passes().values() for end in (p.source, p.target)}
    return tuple(sorted(ends | set(runners())))


def format_of(path: str) -> str | None:
    """The format that a file's name stands for, a prescribed one before an ending; or None."""
    known = runners().values()
    by_name = next((r.format for r in known if path == r.main and not r.suffixes), None)
    return by_name or next((r.format for r in known if path.lower().endswith(r.suffixes)), None)


def route(source: str, target: str) -> tuple[Pass, ...]:
    """The single shortest chain of conversions from `source` to `target`, none of them lossy or in need of data.

    Raises NoRouteError when there is none (with the formats that can be reached) or when two are equally short (with
    both, since either may be meant).
    """
    usable = [p for p in passes().values() if _faithful_conversion(p) and (p.target == target or _optionless(p))]
    chains: list[tuple[Pass, ...]] = [()]
    seen = {source}
    while chains:
        longer = [
            (*chain, p)
            for chain in chains
            for p in usable
            if p.source == (chain[-1].target if chain else source) and p.target not in seen
        ]
        arrived = [chain for chain in longer if chain[-1].target == target]
        if len(arrived) > 1:
            ways = " and ".join(" -> ".join(p.name for p in chain) for chain in arrived)
            raise NoRouteError(
                f"there are {len(arrived)} equally short ways from {source} to {target}: {ways}",
                hint="name the one you mean with `use:`",
                code="OPK-212",
            )
        if arrived:
            return arrived[0]
        seen.update(chain[-1].target for chain in longer)
        chains = longer
    reachable = sorted(seen - {source})
    raise NoRouteError(
        f"no conversion leads from {source} to {target}",
        hint=f"from {source} you can reach: {', '.join(reachable)}"
        if reachable
        else f"nothing converts from {source}: take this step from an earlier one, or from the source",
        code="OPK-211",
    )


def conversion(source: str, target: str) -> tuple[Pass, ...]:
    """The passes by which a pass's candidates of one format come to another's runtime; none where they are the same.

    Raises UserError for a format without a runtime, without a way to it, and where a way leads through an environment
    of its own.
    """
    get_runner(target)
    way = () if source == target else route(source, target)
    if apart := [p.name for p in way if p.environment]:
        raise UserError(f"{apart[0]} runs in an environment of its own, where no candidate can be tried",
                        hint="measure on another runtime")  # fmt: skip
    return way


def _faithful_conversion(p: Pass) -> bool:
    return p.source != p.target and p.fidelity != "lossy" and p.needs_data is False


def _optionless(p: Pass) -> bool:
    """Whether a pass can stand on the way to another: nobody is asked for its options there."""
    try:
        p.options()
    except ValidationError:
        return False
    return True
