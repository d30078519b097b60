"""Where one step of a run has got to, and how the report tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optkit.artifact import Artifact
from optkit.planning import Step
from optkit.report import GateRow


@dataclass
class StepState:
    """Where a step has got to. `phase`: waiting, running, made, checking, failing, blaming, done."""

    step: Step
    phase: str = "waiting"
    status: str = "skipped"
    key: str = ""
    artifact: Artifact | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: {"run": 0.0, "check": 0.0})
    cached: dict[str, bool] = field(default_factory=lambda: {"run": False, "check": False})
    peak_bytes: int | None = None
    error: dict[str, Any] | None = None
    blocked_by: str | None = None
    check: dict[str, Any] | None = None
    blame: dict[str, Any] | None = None
    vectors: Path | None = None
    replay: str | None = None
    deferred: dict[str, Any] | None = None
    speed: dict[str, Any] | None = None
    source_speed: dict[str, Any] | None = None
    made_seconds: float | None = None
    """What its pass took when it ran, though that may have been in an earlier run."""
    untimed: str = ""
    musts: list[dict[str, Any]] = field(default_factory=list)
    gates: list[GateRow] = field(default_factory=list)
    metric_keys: Mapping[str, str] = field(default_factory=dict)
    """Under which keys the task metrics that are being measured may be kept."""
    blame_key: str = ""

    @property
    def proven(self) -> bool:
        return self.status in ("passed", "waived")

    @property
    def usable(self) -> bool:
        """Whether steps may follow: it is proven, or the recipe says that its proof comes later."""
        return self.proven or (self.status == "deferred" and self.step.on_target)

    def to_json(self) -> dict[str, Any]:
        """The step as the report has it."""
        step, artifact = self.step, self.artifact
        return {
            "id": step.id, "pass": step.use.name, "options": step.options_json(), "parent": step.parent,
            "implied": step.implied, "runtime": dict(step.runtime), "fidelity": step.use.fidelity,
            "target": step.use.target,
            "on_target": step.on_target, "data": step.data, "status": self.status, "seconds": self.seconds,
            "cached": self.cached, "peak_bytes": self.peak_bytes, "where": str(step.where) if step.where else None,
            "artifact": {"format": artifact.format, "digest": artifact.digest, "size_bytes": artifact.size_bytes,
                         "path": str(artifact.path), "files": list(artifact.files),
                         "signature": artifact.signature.to_json() if artifact.signature else None}
            if artifact else None,
            "notes": self.notes, "error": self.error, "blocked_by": self.blocked_by, "check": self.check,
            "blame": self.blame,
            "speed": self.speed, "source_speed": self.source_speed, "must": self.musts, "gates": self.gates,
            "made_seconds": self.made_seconds, "deferred": self.deferred, "replay": self.replay,
        }  # fmt: skip
