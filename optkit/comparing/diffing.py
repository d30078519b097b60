"""What differs between two runs, or between two artifacts: signature, operators, precision, size, parity, speed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from optkit.artifact import digest_file
from optkit.comparing.figures import changes, conditions, contract, figures_of
from optkit.delivery.deliver import RECORD
from optkit.errors import UserError, did_you_mean
from optkit.models.looking import in_folder, look, sidecars
from optkit.parity.bounds import EQUAL_DB
from optkit.parity.scores import value_text
from optkit.report import Report
from optkit.reports.spelling import size, spelt

Data = Mapping[str, Any]

_SAME_DB = 0.1
"""Of SQNRs nearer than this the printed figures do not differ."""

_NOT_FACTS = ("path", "signature", "delivered", "size_bytes", "operators", "producer", "description")
_PRECISION = ("precision", "weights", "quantised", "activations")


class DiffRow(TypedDict):
    """One difference. step: "" between artifacts. part: "signature", "operators", "precision", "size", "parity",
    "metric", "speed", "step", "gate", "conditions" or "files". old, new: as text, "" where there is none.
    """

    part: str
    step: str
    item: str
    old: str
    new: str


class Diff(TypedDict):
    """kind: "runs" or "artifacts". same: there are no rows. notes: what could not be compared, and why."""

    kind: Literal["runs", "artifacts"]
    old: str
    new: str
    same: bool
    rows: list[DiffRow]
    notes: list[str]


def diff(old: str | Path, new: str | Path) -> Diff:
    """What differs between two runs (their folders or report.json), or two artifacts (files or delivered folders).

    No model is run: parity and speed are those that the runs measured. Raises UserError for what is neither, and where
    one is a run and the other an artifact.
    """
    places = Path(old), Path(new)
    reports = [_report(place) for place in places]
    if (reports[0] is None) != (reports[1] is None):
        runs = " and ".join(
            f"{p} is {'an artifact' if r is None else 'a run'}" for p, r in zip(places, reports, strict=True)
        )
        raise UserError(f"these cannot be compared: {runs}", hint="name two runs, or a delivered folder of the run",
                        code="OPK-256")  # fmt: skip
    notes: list[str] = []
    if reports[0] is not None and reports[1] is not None:
        rows = list(_runs(reports[0], reports[1], places, notes))
    else:
        rows = list(_artifacts(*places, notes))
    return {"kind": "runs" if reports[0] else "artifacts", "old": str(old), "new": str(new), "same": not rows,
            "rows": rows, "notes": list(dict.fromkeys(notes))}  # fmt: skip


def _report(place: Path) -> Data | None:
    """The report of a run; None of an artifact. Raises UserError for a damaged one, and for no file at all."""
    if not place.exists():
        near = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
        raise UserError(f"there is no {place}", hint=did_you_mean(place.name, near, listing=False) or "check the path")
    if place.is_dir() and (place / "report.json").is_file():
        place = place / "report.json"
    return Report.read(place).data if place.suffix == ".json" and place.is_file() else None


def _row(part: str, item: str, old: object, new: object, step: str = "") -> DiffRow:
    return {"part": part, "step": step, "item": item, "old": "" if old is None else str(old),
            "new": "" if new is None else str(new)}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- runs


def _runs(old: Data, new: Data, places: tuple[Path, Path], notes: list[str]) -> Iterator[DiffRow]:
    for text in changes(conditions(old), conditions(new)):
        yield _row("conditions", text, None, None)
    yield from _tensors(contract(old), contract(new))
    judged = contract(old)["judging data"] == contract(new)["judging data"]
    if not judged:
        notes.append("parity and metrics are not compared: the runs were judged on other data")
    steps = [{s["id"]: s for s in report["steps"]} for report in (old, new)]
    figures = [figures_of(report) for report in (old, new)]
    for step_id in dict.fromkeys([*steps[0], *steps[1]]):
        was, now = steps[0].get(step_id), steps[1].get(step_id)
        if was is None or now is None:
            yield _row("step", "is there", "yes" if was else "no", "yes" if now else "no", step_id)
            continue
        yield from _steps(was, now, step_id)
        yield from _figures(figures[0][step_id], figures[1][step_id], step_id, judged)
        folders = [_delivered(place, step) for place, step in zip(places, (was, now), strict=True)]
        if folders[0] and folders[1]:
            yield from _inside(look(folders[0]), look(folders[1]), step_id)
        elif any(step_id in (d["step"] for d in report["deliver"] if d["path"]) for report in (old, new)):
            notes.append(f"{step_id}: operators and precision are not compared: its files are not beside both reports")


def _delivered(place: Path, step: Data) -> Path | None:
    """The folder that a run delivered a step into, where it is still that step's."""
    import json

    folder = (place if place.is_dir() else place.parent) / step["id"]
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return folder if record["digest"] == (step["artifact"] or {}).get("digest") else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _steps(was: Data, now: Data, step: str) -> Iterator[DiffRow]:
    for key in ("status", "pass", "parent", "data"):
        if was[key] != now[key]:
            yield _row("step", key, was[key], now[key], step)
    for item, a, b in _flat_pairs(was["options"], now["options"]):
        yield _row("step", f"with.{item}", a, b, step)
    gates = [{g["gate"]: g for g in found.get("gates") or ()} for found in (was, now)]
    for name in dict.fromkeys([*gates[0], *gates[1]]):
        a, b = ((found.get(name) or {}).get("status") for found in gates)
        if a != b:
            yield _row("gate", name, a, b, step)


# ----------------------------------------------------------------------------------------------------------- artifacts


def _artifacts(old: Path, new: Path, notes: list[str]) -> Iterator[DiffRow]:
    found, records, digests = [], [], []
    for place in (old, new):
        about = look(place)
        path, record = in_folder(place) if place.is_dir() else (place, {})
        found.append(about)
        records.append(record)
        digests.append([digest_file(p) for p in sidecars(path)])
    yield from _inside(found[0], found[1])
    a, b = (_of_record(record, about["size_bytes"]) for record, about in zip(records, found, strict=True))
    judged = True
    if all(records):
        judged = _judged_on(records[0]) == _judged_on(records[1])
        if not judged:
            notes.append("parity and metrics are not compared: the two were judged on other data")
    elif any(records):
        notes.append("parity and speed are not compared: only one of the two was delivered by a run")
        a, b = ({"size_bytes": f["size_bytes"]} for f in found)
    rows = list(_figures(a, b, "", judged))
    yield from rows
    if found[0]["format"] == found[1]["format"] and digests[0] != digests[1]:
        yield _row("files", "bytes", digests[0][0][:12], digests[1][0][:12])


def _of_record(record: Data, size_bytes: int) -> Data:
    if not record:
        return {"size_bytes": size_bytes}
    step = {**record, "id": "it", "target": record["format"], "artifact": {"size_bytes": size_bytes}}
    return figures_of({"steps": [step]})["it"]


def _judged_on(record: Data) -> object:
    name = (record.get("check") or {}).get("data")
    return ((record.get("provenance") or {}).get("data") or {}).get(name, {}).get("digest")


# ------------------------------------------------------------------------------------------------------------- figures


def _figures(was: Data, now: Data, step: str, judged: bool) -> Iterator[DiffRow]:
    """Rows for size, parity, metrics and speed; judged: parity was measured on the same samples."""
    a, b = was.get("size_bytes"), now.get("size_bytes")
    if a != b:
        change = f" ({b / a - 1:+.1%})" if a and b else ""
        yield _row("size", "size", size(a), size(b) + change, step)
    for name in ("sqnr_db", "mismatch") if judged else ():
        a, b = was.get(name), now.get(name)
        close = name == "sqnr_db" and a is not None and b is not None and abs(a - b) < _SAME_DB
        if not close:
            yield from _changed("parity", name, _parity(name, a), _parity(name, b), step)
    for name, one, other in _pairs(was, now, "scores") if judged else ():
        yield from _changed("metric", name, _score(one), _score(other), step)
    for name, one, other in _pairs(was, now, "speed"):
        r, q = one and one["ratio"], other and other["ratio"]
        if not (r and q) or r["high"] < q["low"] or q["high"] < r["low"]:
            yield from _changed("speed", f"over {name}", _speed(r), _speed(q), step)


def _pairs(was: Data, now: Data, kind: str) -> Iterator[tuple[str, Data | None, Data | None]]:
    one, other = was.get(kind, {}), now.get(kind, {})
    for name in dict.fromkeys([*one, *other]):
        yield name, one.get(name), other.get(name)


def _changed(part: str, item: str, old: str, new: str, step: str) -> Iterator[DiffRow]:
    if old != new:
        yield _row(part, item, old, new, step)


def _parity(name: str, value: float | None) -> str:
    return "" if value is None else spelt(name, min(value, EQUAL_DB))


def _score(score: Data | None) -> str:
    return "" if score is None else value_text(score)


def _speed(ratio: Data | None) -> str:
    return "" if ratio is None else f"{ratio['value']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def _inside(was: Data, now: Data, step: str = "") -> Iterator[DiffRow]:
    """Rows for what two files say of themselves: signature, operators, precision, and what else the format knows."""
    if was["format"] != now["format"]:
        yield _row("files", "format", was["format"], now["format"], step)
    told = [{kind: {t["name"]: f"{t['dtype']}{_shape(t['shape'])}" for t in (about["signature"] or {}).get(kind, ())}
             for kind in ("inputs", "outputs")} for about in (was, now)]  # fmt: skip
    yield from _tensors(told[0], told[1], step)
    if was["format"] != now["format"]:
        return  # other formats have other operators and other words for precision
    for name, a, b in _flat_pairs(was.get("operators") or {}, now.get("operators") or {}):
        yield _row("operators", name, a or 0, b or 0, step)
    facts, others = ({k: v for k, v in about.items() if k not in _NOT_FACTS} for about in (was, now))
    for name, a, b in _flat_pairs(facts, others):
        yield _row("precision" if name.split(".")[0] in _PRECISION else "files", name, a, b, step)


def _tensors(was: Data, now: Data, step: str = "") -> Iterator[DiffRow]:
    for kind in ("inputs", "outputs"):
        for name in dict.fromkeys([*was[kind], *now[kind]]):
            a, b = was[kind].get(name), now[kind].get(name)
            if a != b:
                yield _row("signature", f"{kind[:-1]} {name}", a, b, step)
        if list(was[kind]) != list(now[kind]) and set(was[kind]) == set(now[kind]):
            yield _row("signature", f"order of {kind}", ", ".join(was[kind]), ", ".join(now[kind]), step)


def _shape(shape: list[Any] | None) -> str:
    return "[?]" if shape is None else f"[{', '.join(map(str, shape))}]"


def _flat_pairs(was: Data, now: Data, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """What differs between two mappings, nested ones by dotted names."""
    for key in dict.fromkeys([*was, *now]):
        a, b = was.get(key), now.get(key)
        if isinstance(a, Mapping) or isinstance(b, Mapping):
            inner, others = (value if isinstance(value, Mapping) else {} for value in (a, b))
            yield from _flat_pairs(inner, others, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b
