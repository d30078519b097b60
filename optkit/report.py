"""What happened, as one JSON document; the terminal, Markdown and every other form are drawn from it alone."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from optkit.artifact import canonical
from optkit.errors import CheckError, StepError, UserError, from_json

SCHEMA = 1

INTERRUPTED = 130
"""The exit code of what was interrupted: 128 and the number of SIGINT, as shells have it."""

# Worst first: the run's exit code is that of its worst step.
_EXIT_CODES = {"blocked": 1, "failed": 1, "deferred": 1}


class GateRow(TypedDict):
    """One gate on one delivery.

    gate: as the recipe states it. scope: "recipe" for one on all deliveries, "step" for one of this step.
    status: held, failed, deferred (the target measures it), not judged (the step did not hold).
    measured, limit: in `unit`, which is "B", "ms", "s", "ratio", "fraction" or a task metric's own; measured is None
    where there was nothing to measure. text: what was measured, in one line.
    """

    gate: str
    scope: str
    status: str
    measured: float | None
    limit: float
    unit: str
    text: str


class BaselineRow(TypedDict):
    """One figure of one delivery beside the baseline's.

    figure: "size", "sqnr_db", "mismatch", a task metric's name, "speed over PARENT", "latency p50 beside PARENT", or
    "delivery" for one that is missing or new. before, now: in bytes, dB, the metric's unit, a ratio or ms.
    status: same, better, worse (beyond tolerance and noise), missing (not there any more), new. limit: the worst that
    `now` may be by the tolerance, noise left out; None where it is not judged. All three are in `unit`: "B", "dB",
    "fraction", "ratio", "ms" or a task metric's own.
    """

    step: str
    figure: str
    status: str
    unit: str
    before: float | None
    now: float | None
    limit: float | None
    text: str


class BaselineResult(TypedDict):
    """A run held against its baseline, `file`.

    problem: why it could not be, else ""; with the hint and the error's code. changes: what is not the same that may
    have made the difference, one line each. tolerance: by name, as shares or dB; None is not judged.
    """

    file: str
    held: bool
    problem: str
    hint: str
    code: str
    rows: list[BaselineRow]
    changes: list[str]
    tolerance: dict[str, float | None]


@dataclass(frozen=True)
class Report:
    """The canonical JSON document of one run (`data`), and what a program asks of it.

    Keys: schema, optkit, name, recipe, started, seconds, environment, source, data, steps, deliver, baseline (a
    `BaselineResult`, None where the recipe names none), benchmark (None where it names none; else against, rows as
    `optkit.speed.benching.bench` gives them, notes, error), exit_code.
    A step has: id, pass, options, parent, implied, fidelity, target, status, seconds {run, check}, cached {run, check},
    artifact, notes, error, blocked_by, check, blame, speed, source_speed, must, gates (`GateRow`s), made_seconds (of
    its pass, when that ran), deferred, replay. A check has: against, data, precision, lossy, bounds, stated_by, metrics
    (those declared), waived, provider, held, cases; a case: name, kind, sizes,
    samples, source, parent (metric results), scores (of the judging set, by declared metric; see
    `optkit.parity.scores`), verdicts, held. A speed, where it was measured: against, ratio (value, low, high, rounds),
    verdict, sizes, threads, provider, latency_ms, parent_latency_ms; `speed` is against the parent, `source_speed`
    against the source, measured where a gate asks for it. Each `must`: must, held, text. Where this machine
    cannot make the check, `error` says why, and `deferred` holds the nearest ancestor's verdict (`beside`) and the
    cases that the target has to check. After a failed check `blame` names the layer: against (the ancestor compared
    with), case, samples, blamed (a layer or None), text, problem, layers, worst, compared, tensors, output_db, notes;
    a layer: tensor, operator, node, module, before_db, after_db, local_db, estimated, alone_db, nonfinite, fused.
    """

    data: Mapping[str, Any]

    @property
    def ok(self) -> bool:
        """Whether every delivery was made and proven."""
        return self.exit_code == 0

    @property
    def exit_code(self) -> int:
        """0 all held, 1 a check did not hold, 2 wrong input, 3 a step failed, 4 unavailable, 130 interrupted."""
        return int(self.data["exit_code"])

    @property
    def interrupted(self) -> bool:
        """Whether the run was stopped before its end: steps may be "interrupted" or "skipped"."""
        return self.exit_code == INTERRUPTED

    @property
    def steps(self) -> list[Mapping[str, Any]]:
        """The steps, in plan order."""
        return list(self.data["steps"])

    def step(self, step_id: str) -> Mapping[str, Any]:
        """The step of that id. Raises KeyError."""
        return {s["id"]: s for s in self.steps}[step_id]

    def path(self, step_id: str) -> Path:
        """The folder a delivered step lies in. Raises KeyError when it was not delivered."""
        return Path({d["step"]: d["path"] for d in self.data["deliver"] if d["path"]}[step_id])

    def to_json(self) -> str:
        """The document as text: indented, keys in a fixed order."""
        return json.dumps(self.data, indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    def write(self, path: Path) -> None:
        """Write the document, whole or not at all."""
        write_atomically(path, self.to_json())

    @staticmethod
    def read(path: Path) -> Report:
        """The report in a file. Raises UserError when there is none, or it is damaged or of another schema."""
        from optkit.reports.document import faults

        hint = "optkit convert writes it again"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            what = f"there is no report at {path}"
            raise UserError(what, hint="name a folder that optkit convert wrote, or its report.json") from error
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} cannot be read as a report: {error}", hint=hint) from error
        schema = data.get("schema") if isinstance(data, dict) else None
        if not isinstance(schema, int) or isinstance(schema, bool):
            raise UserError(f"{path} is no optkit report: it states no schema", hint=hint)
        if schema != SCHEMA:
            newer = schema > SCHEMA
            raise UserError(
                f"{path} has report schema {schema}, of {'a newer' if newer else 'an older'} optkit "
                f"({data.get('optkit')}); this one reads {SCHEMA}",
                hint="upgrade optkit" if newer else hint,
            )
        if wrong := faults(data):
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise UserError(f"{path} is damaged: {wrong[0]}{more}", hint=hint)
        return Report(data)


def exit_code_of(steps: Sequence[Mapping[str, Any]], baseline: BaselineResult | None = None) -> int:
    """The exit code a run deserves, from its steps' statuses and errors, and from what it was held against."""
    code = 0
    for step in steps:
        error = step.get("error")
        if step["status"] == "error":
            mine = from_json(error).exit_code if error else StepError.exit_code
            code = max(code, mine) if code > 1 else mine
        elif code == 0 and not (step["status"] == "deferred" and step.get("on_target")):
            code = _EXIT_CODES.get(step["status"], 0)
    if baseline is not None and not baseline["held"]:
        code = max(code, UserError.exit_code if baseline["problem"] else CheckError.exit_code)
    return code


def write_atomically(path: Path, text: str) -> None:
    """Write a text file by way of a temporary neighbour, so that a reader sees the old or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        # Half a surrogate pair, as in a file name that is no UTF-8, becomes an escape that JSON reads back.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write JSON data in its canonical spelling, whole or not at all."""
    write_atomically(path, canonical(data))
