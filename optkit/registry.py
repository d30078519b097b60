"""Names to passes and runners: a plain table, plus what installed packages add through entry points.

A third party adds a pass or a runner with an entry point in the group `optkit.passes` or `optkit.runners`, whose value
is a `Pass` or `Runner` constant.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterable
from functools import cache

from optkit.errors import UnavailableError, UserError, did_you_mean
from optkit.plugin import Pass, Runner

_PASSES = (
    "torch_to_onnx",
    "torch_to_openvino",
    "onnx_simplify",
    "onnx_optimize_transformer",
    "onnx_fp16",
    "onnx_quantize",
    "onnx_to_openvino",
    "openvino_fp16",
    "openvino_quantize",
    "openvino_compress_weights",
)

_RUNNERS = ("torch_runner", "onnx_runner", "openvino_runner")


class NoRouteError(UserError):
    """No chain of conversions leads from one format to the other, or two equally short ones do."""


@cache
def passes() -> dict[str, Pass]:
    """Every pass by name. Loads no backend. Raises UnavailableError for a broken plug-in."""
    found = {p.name: p for p in (importlib.import_module(f"optkit.passes.{name}").PASS for name in _PASSES)}
    for name, item in _plugged("optkit.passes", Pass):
        if name in found:
            raise UnavailableError(f"two passes are called {name!r}; one comes from a plug-in",
                                   hint="uninstall or rename the plug-in's pass")
        found[name] = item
    return found


@cache
def runners() -> dict[str, Runner]:
    """Every runner by format. Loads no backend. Raises UnavailableError for a broken plug-in."""
    found = {r.format: r for r in (importlib.import_module(f"optkit.runners.{name}").RUNNER for name in _RUNNERS)}
    for name, item in _plugged("optkit.runners", Runner):
        if name in found:
            raise UnavailableError(f"two runners serve the format {name!r}; one comes from a plug-in",
                                   hint="uninstall the plug-in or give its format another name")
        found[name] = item
    return found


def _plugged(group: str, kind: type[Pass] | type[Runner]) -> Iterable[tuple[str, Pass | Runner]]:
    for point in importlib.metadata.entry_points(group=group):
        try:
            item = point.load()
        except Exception as error:  # somebody else's module may fail in any way
            raise UnavailableError(f"the plug-in {point.value} ({group}) cannot be loaded: "
                                   f"{type(error).__name__}: {error}",
                                   hint=f"reinstall or remove the package that brings {point.name!r}") from error
        if not isinstance(item, kind):
            raise UnavailableError(f"the plug-in {point.value} ({group}) is a {type(item).__name__}, "
                                   f"not a {kind.__name__}", hint="its entry point must name the constant")
        yield (item.name if isinstance(item, Pass) else item.format), item


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
    """The format a file's ending stands for, or None."""
    lowered = path.lower()
    return next((r.format for r in runners().values() if lowered.endswith(r.suffixes)), None)


def route(source: str, target: str) -> tuple[Pass, ...]:
    """The single shortest chain of conversions from `source` to `target`, none of them lossy or in need of data.

    Raises NoRouteError when there is none (with the formats that can be reached) or when two are equally short (with
    both, since either may be meant).
    """
    usable = [p for p in passes().values() if p.source != p.target and p.fidelity != "lossy" and p.needs_data is False]
    chains: list[tuple[Pass, ...]] = [()]
    seen = {source}
    while chains:
        longer = [
            (*chain, p) for chain in chains for p in usable
            if p.source == (chain[-1].target if chain else source) and p.target not in seen
        ]  # fmt: skip
        arrived = [chain for chain in longer if chain[-1].target == target]
        if len(arrived) > 1:
            ways = " and ".join(" -> ".join(p.name for p in chain) for chain in arrived)
            raise NoRouteError(f"there are {len(arrived)} equally short ways from {source} to {target}: {ways}",
                               hint="name the one you mean with `use:`")
        if arrived:
            return arrived[0]
        seen.update(chain[-1].target for chain in longer)
        chains = longer
    reachable = sorted(seen - {source})
    raise NoRouteError(f"no conversion leads from {source} to {target}",
                       hint=f"from {source} you can reach: {', '.join(reachable) or 'nothing'}")
