"""How fast artifacts are beside one another: latency, throughput, start, memory and size, run in turns."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optkit.artifact import Artifact, Dim, Signature, TensorSpec
from optkit.cache import Cache
from optkit.caching import keys
from optkit.errors import UserError
from optkit.live.livedata import Data, dataset_entry
from optkit.models.asking import ask, side_at
from optkit.models.common_inputs import UNKNOWN, Side, common_inputs
from optkit.models.opened import Ranges, beside, ranges_of
from optkit.models.sizes import model_bytes
from optkit.parity.cases import Case, batch_dim
from optkit.running.pool import Pool
from optkit.running.racing import SECONDS, STARTS, is_overloaded, verdict
from optkit.spec.runtimes import CODE, Given, checked, named, unused

UNSTEADY = 0.05
"""An interval's half width, or the wobble of an artifact's rounds, above this share of its value is told."""

FEW = 100
"""Of fewer inferences than this the 99th percentile is little more than the slowest one."""


def bench(
    artifacts: Sequence[str | Path],
    *,
    data: Data | None = None,
    batch: Sequence[int] = (),
    threads: Sequence[int] = (),
    against: str | Path | None = None,
    inputs: Mapping[str, Mapping[str, Any]] | None = None,
    dims: Ranges | None = None,
    device: str = "cpu",
    seconds: float = SECONDS,
    starts: int = STARTS,
    settings: Given | None = None,
) -> dict[str, Any]:
    """The speed of artifacts, each in a process of its own, on the same samples and in turns, as ratios to the first.

    artifacts: model files, delivered folders or FILE.py:NAME, of any format that optkit opens; they take the same
    inputs. data: as `optkit.convert` takes it; None is random inputs, and then `synthetic` is true. batch, threads:
    the sizes and numbers to measure at, each with each; default: 1, or the batch that the models are fixed at, and all
    cores. against: what the ratios are to; default: the first artifact. seconds: how long each runs, at most. starts:
    in how many processes, one after the other, each is opened and raced; what opening took is their median. settings:
    of runtimes, by format and name, such as {"openvino": {"INFERENCE_PRECISION_HINT": "bf16"}}: each artifact of that
    format is measured as it is, and once more with them under the name "ARTIFACT [SETTINGS]", and the answers of the
    two are compared.

    Returns {"against", "synthetic", "dims", "notes", "hardware", "rows": [...]}; a row has: artifact, format, batch,
    threads, provider, latency_ms (mean, p50, p90, p99), samples_per_second, open_seconds, first_seconds, peak_bytes,
    bare_bytes, size_bytes, inferences, ratio (value, low, high, rounds; None for `against`), verdict, unsteady (why its
    figures are not to be trusted, "" where they are), settings, parity (with settings, of its answers to those without:
    against, equal, cosine, sqnr_db, problems; else None). Raises UserError for what cannot be measured together.
    """
    chosen_settings = checked(settings or {})
    refs = _refs(artifacts, against)
    asked = ranges_of(dims)
    inputs, tried = beside(refs.values(), inputs, asked)
    _check(batch, threads, seconds)
    common: dict[str, Any] = {
        "base": str(Path.cwd()), "seed": 0, "device": device, "threads": keys.cores(), "outputs": [],
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="optkit-bench-") as temporary:
        work = Path(temporary)
        section: dict[str, Any] = {}
        with Pool(1, work / "logs") as pool:
            sides: dict[str, Side] = {}
            for name, ref in refs.items():
                sides[name], model = side_at(ref, inputs, tried, pool, work, common)
                section = section or model
            if idle := unused(chosen_settings, (artifact.format for artifact, _ in sides.values())):
                raise UserError(f"settings of {idle[0]}, and none of the artifacts is {idle[0]}",
                                hint="leave them out, or name an artifact that they are for", code=CODE)  # fmt: skip
            entrants, pairs = set_up({name: artifact for name, (artifact, _) in sides.items()}, chosen_settings)
            chosen, sizes, fixed = _common(list(sides.values()), asked)
            entry = dataset_entry(data, "judge", Cache(work / "cache"), section, lambda: chosen)
            name_of_batch, batches = _batches(chosen, sizes, batch)
            for count in threads or (keys.cores(),):
                for size in batches:
                    ranges = dict(sizes)
                    if name_of_batch:
                        ranges[name_of_batch] = Dim(min(size, sizes[name_of_batch].min), size, size)
                    case = Case("samples", "samples", {name_of_batch: size} if name_of_batch else {})
                    done = ask(pool, {
                        **common, "task": "race", "threads": count, "case": case.to_json(),
                        "artifacts": {name: artifact.to_json() for name, artifact in entrants.items()},
                        "inputs": [t.to_json() for t in chosen], "dims": keys.dims_json(ranges),
                        "datasets": {"judge": entry}, "check_on": "judge", "starts": starts, "pairs": pairs,
                        "seconds": seconds * len(entrants), "out": tempfile.mkdtemp(dir=work),
                    }, work)  # fmt: skip
                    rows += [row_of(name, a, size, count, done["entrants"][name]) for name, a in entrants.items()]
    return {
        "against": next(iter(refs)),
        "synthetic": "random" in entry,
        "dims": keys.dims_json(sizes),
        "notes": [f"at {name}={size} alone: one of the models is fixed there" for name, size in fixed.items()],
        "hardware": keys.hardware(),
        "rows": rows,
    }


def set_up(artifacts: Mapping[str, Artifact], settings: Given) -> tuple[dict[str, Artifact], dict[str, str]]:
    """The artifacts, each of a format with settings once more with them; and what each of those is beside."""
    made, pairs = dict(artifacts), {}
    for name, artifact in artifacts.items():
        if chosen := settings.get(artifact.format):
            other = f"{name} [{named(chosen)}]"
            both = {**(artifact.meta.get("runtime") or {}), **chosen}
            made[other] = replace(artifact, meta={**artifact.meta, "runtime": both})
            pairs[other] = name
    return made, pairs


def _refs(artifacts: Sequence[str | Path], against: str | Path | None) -> dict[str, str]:
    """What to measure by a name of its own, first what the others are held against."""
    wanted = [str(ref) for ref in artifacts]
    if not wanted:
        raise UserError("there is nothing to measure", hint="name a model file or a delivered folder")
    if against is not None:
        base = str(against)
        wanted = [
            base,
            *(wanted[: wanted.index(base)] + wanted[wanted.index(base) + 1 :] if base in wanted else wanted),
        ]
    refs: dict[str, str] = {}
    for ref in wanted:
        twins = sum(known == ref for known in refs.values())
        refs[f"{ref} ({twins + 1})" if twins else ref] = ref
    return refs


def _check(batch: Sequence[int], threads: Sequence[int], seconds: float) -> None:
    for name, values in (("batch", batch), ("threads", threads)):
        if wrong := [value for value in values if value < 1]:
            raise UserError(f"{name}: {wrong[0]} is no size", hint="give whole numbers from 1", subject=name)
    if not 0 < seconds < float("inf"):
        raise UserError(f"seconds: {seconds:g} is no time", hint="give a number above 0", subject="seconds")
    if threads and max(threads) > keys.cores():
        raise UserError(f"threads: {max(threads)} threads, and this process may use {keys.cores()} cores",
                        hint=f"at most {keys.cores()} here", subject="threads")  # fmt: skip


def _common(
    sides: Sequence[Side], asked: Mapping[str, Dim]
) -> tuple[tuple[TensorSpec, ...], dict[str, Dim], dict[str, int]]:
    """Inputs that all models take, the sizes at which all do, and the dims that one of them fixes."""
    first = sides[0]
    fixed: dict[str, int] = {}
    for other in sides[1:] or sides:
        chosen, sizes, found = common_inputs(first, other, asked)
        fixed |= found
        artifact = first[0]
        assert artifact.signature is not None
        first = replace(artifact, signature=Signature(chosen, artifact.signature.outputs)), sizes
        asked = {}
    return chosen, sizes, fixed


def _batches(
    inputs: Sequence[TensorSpec], sizes: Mapping[str, Dim], wanted: Sequence[int]
) -> tuple[str | None, tuple[int, ...]]:
    """The name of the batch dim, where it is open, and the sizes to measure at. Raises UserError."""
    name = batch_dim(inputs)
    if name is None:
        first = {t.shape[0] for t in inputs if t.shape and isinstance(t.shape[0], int)}
        size = int(next(iter(first))) if len(first) == 1 else 1
        if wrong := [n for n in wanted if n != size]:
            raise UserError(f"batch: {wrong[0]} does not fit, for one of the models is fixed at {size}",
                            hint=f"leave it out, or convert that model with an open batch; --batch {size} runs",
                            subject="batch")  # fmt: skip
        return None, (size,)
    sizes_ = sizes[name]
    known = sizes_ != UNKNOWN
    if wrong := [n for n in wanted if known and not sizes_.min <= n <= sizes_.max]:
        raise UserError(f"batch: {wrong[0]} is not within {sizes_.min} to {sizes_.max}, for which these were made",
                        hint="measure within it, or convert with another range under dims:",
                        subject="batch")  # fmt: skip
    return name, tuple(wanted) or (sizes_.min if known else 1,)


def row_of(name: str, artifact: Artifact, size: int, threads: int, found: Mapping[str, Any]) -> dict[str, Any]:
    """One row of `bench`, from what a race found of an entrant."""
    ratio = found["ratio"]
    return {
        "artifact": name, "format": artifact.format, "batch": size, "threads": threads, "provider": found["provider"],
        "latency_ms": {"mean": found["mean_ms"], **found["latency_ms"]},
        "samples_per_second": size / found["mean_ms"] * 1e3,
        **{key: found[key] for key in ("open_seconds", "first_seconds", "peak_bytes", "bare_bytes", "inferences")},
        "size_bytes": model_bytes(artifact), "ratio": ratio,
        "verdict": verdict(ratio) if ratio else None, "unsteady": _unsteady(found),
        "settings": artifact.meta.get("runtime") or {}, "parity": found["parity"],
    }  # fmt: skip


def _unsteady(found: Mapping[str, Any]) -> str:
    ratio, said = found["ratio"], []
    if ratio and (width := (ratio["high"] - ratio["low"]) / 2 / ratio["value"]) > UNSTEADY:
        said.append(f"ratio known to {width:.0%} only")
    if ratio and is_overloaded(ratio):
        said.append(f"other programs took {ratio['taken']:.0%} of the time")
    if found["wobble"] > UNSTEADY:
        said.append(f"times vary by {found['wobble']:.0%}")
    if found["inferences"] < FEW:
        said.append(f"p99 of {found['inferences']} inferences")
    return ", ".join(said)
