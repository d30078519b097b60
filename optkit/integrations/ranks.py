"""Work that one process of a distributed training does while the others wait for how it ended."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from optkit.errors import CheckError, OptkitError, StepError, from_json

PATIENCE = timedelta(hours=24)
"""How long the others wait: a process group's own limit, 10 or 30 minutes, is made for gradients."""


def on_first(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` returned (JSON data) in the first process, in every process of the training.

    Every process has to call it. What `work` raises in the first is raised in all of them: none goes on alone, none is
    left waiting.
    """
    dist = _distributed()
    if dist is None:
        return work()
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    told: list[Any] = [None]
    try:
        if dist.get_rank() != 0:
            dist.broadcast_object_list(told, src=0, group=group)
            if "error" in told[0]:
                raise _elsewhere(told[0])
            return dict(told[0]["done"])
        try:
            done = work()
        except BaseException as error:
            told[0] = _as_json(error)
            dist.broadcast_object_list(told, src=0, group=group)
            raise
        dist.broadcast_object_list([{"done": done}], src=0, group=group)
        return done
    finally:
        dist.destroy_process_group(group)


def is_first() -> bool:
    """Whether this is the process that does the work."""
    dist = _distributed()
    return dist is None or dist.get_rank() == 0


def _distributed() -> Any:
    """torch.distributed, where more than one process trains."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed if torch.distributed.get_world_size() > 1 else None


def _as_json(error: BaseException) -> dict[str, Any]:
    known = error if isinstance(error, OptkitError) else StepError(f"{type(error).__name__}: {error}")
    report = getattr(error, "report", None)
    return {"error": known.to_json(), "report": report.data if report is not None else None}


def _elsewhere(told: dict[str, Any]) -> OptkitError:
    from optkit.report import Report

    error = from_json(told["error"])
    if isinstance(error, CheckError) and told["report"] is not None:
        error.report = Report(told["report"])
    return error
