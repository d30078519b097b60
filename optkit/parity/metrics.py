"""Measure how far a candidate's outputs are from the reference's: streamed, scale-aware, worst sample first.

All arithmetic is in float64. r is the reference's and c the candidate's value of one output on one sample,
flattened; `bounds.METRICS` has each metric's definition, unit and source. What the definitions leave open:

- A sample whose ||r|| is at most 1e-6 of the case's RMS ||r|| counts as zero: rel_l2 is then relative to that
  RMS, and a difference just as small has cosine 1. Otherwise two zero vectors have cosine 1, and one has 0.
- If r is zero over the whole case, any other c is a problem, with rel_l2 at its cap.
- JSON has no infinity: rel_l2 is capped at 1e15, sqnr_db at +-300 (+300: equal to the last bit). A sample
  with a NaN or infinity that only one side has takes each metric's worst value (1e300 where there is none);
  means and quantiles are over the other samples.
- NaN and infinities that both have in the same places are a note, and the finite rest is compared.
- The cosine of a one-element output is only its sign; judge it by rel_l2. Where r is constant (to 1e-6) no
  shape is left to compare, and centred_cosine falls back to cosine; where c alone is constant it is 0.
- top-k, kl and accuracy read the last axis as classes: meaningful for logits only. kl of outputs that already
  are probabilities comes out too small. Where r has an exact tie, any of the tied classes agrees; a tie in c
  goes to the lower index, as argmax does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.parity.bounds import METRICS
from optkit.parity.intervals import shares

Array = NDArray[Any]
Shape = tuple[int, ...]
Outputs = Mapping[str, Array]

CHUNK_ELEMENTS = 1 << 20  # 8 MB of float64: bounds the temporaries, whatever the tensor's size
ZERO_SHARE = 1e-6  # of the RMS norm: a float32 zero that went through other kernels stays below this
VARIES_SHARE = 1e-5  # of the peak: above what rounding alone does between equal rows of one batch
DEAD_SHARE = 1e-3  # a candidate that varies this much less than the reference is constant
SAFE_RANGE = (1e-140, 1e140)  # squares of what lies outside leave float64
REL_L2_CAP, WORST_VALUE = 1e15, 1e300
HISTOGRAMS, BINS = ("sqnr_db", "mismatch"), 24
_SUMS = ("rr", "cc", "rc", "dd", "n", "x", "y", "xx", "yy", "xy", "max_abs", "unequal", "kl", "top1", "top5")
NOTES = ("matching", "unlabelled")  # kinds of finding that fail nothing


class Comparison:
    """Accumulates one case, batch by batch; per sample and output it keeps about a dozen float64.

    Beyond these it keeps one sample per output and side, to see whether later ones differ. label_output names
    the output that labels belong to; None takes the only one they fit.
    """

    def __init__(self, *, label_output: str | None = None) -> None:
        self._label_output = label_output
        self._samples = 0
        self._labelled = 0
        self._outputs: dict[str, _Track] = {}
        self._findings: dict[tuple[str, str | None], _Finding] = {}

    @np.errstate(all="ignore")
    def add(
        self, reference: Outputs, candidate: Outputs, samples: int | None = None, labels: Array | None = None
    ) -> None:
        """Add one batch: outputs by name, real numbers of any width (bfloat16 too), or bool.

        samples: the batch size where axis 0 is the sample axis; an output whose axis 0 has another length, or
        every output if None, is one sample as a whole. labels: integers, shaped as the output without its
        last axis, `(samples,)` or `(samples, positions)`; negative ones are left out.
        Differences, even in names and shapes, are recorded, not raised; ValueError for a negative `samples`.
        """
        count = 1 if samples is None else samples
        if count < 0:
            raise ValueError(f"samples is {samples}, but a batch cannot have a negative size")
        start, self._samples = self._samples, self._samples + count
        fits: list[str] = []
        for name in dict.fromkeys([*reference, *candidate]):
            if name not in candidate:
                self._find("missing", name, start, f"the candidate has no output {name!r}")
            elif name not in reference:
                self._find("extra", name, start, f"the reference has no output {name!r}")
            elif count:
                r, c = np.asarray(reference[name]), np.asarray(candidate[name])
                compared = self._add_output(name, r, c, samples, start)
                if compared and labels is not None and r.shape[-1:] > (1,) and r.shape[:-1] == labels.shape:
                    fits.append(name)
        if labels is not None and count:
            self._add_labels(fits, reference, candidate, labels, count)

    @np.errstate(all="ignore")
    def result(self) -> dict[str, Any]:
        """What was measured: JSON-able, every number finite.

        `{"samples": n, "problems": [finding], "notes": [finding], "outputs": {name: {metric: measured}}}`. A
        finding is `{kind, output, sample, text}`; any problem means the case does not hold. measured is
        `{worst, worst_sample, mean, p50, p05 or p95}` (the quantile on the bad side), or for what is counted
        over the case `{value, disagreeing, total, worst_sample}`, the last the first sample that disagrees. sqnr_db
        and mismatch have a histogram too: `{perfect, low, high, counts}`, samples without any error and the others.
        accuracy is `{value, interval, reference, reference_interval, candidate, total}`, accuracy_drop `{value,
        interval, method, total}`; an interval is that of 95 % confidence (`optkit.parity.intervals`).
        """
        found = dict(self._findings)

        def find(kind: str, output: str | None, text: str) -> None:
            found.setdefault((kind, output), _Finding(kind, output, None, text))

        if not self._samples:
            find("empty", None, "no samples were compared")
        elif not self._outputs and not found:
            find("empty", None, "there are no outputs to compare")
        for name, track in self._outputs.items():
            failed = any(output == name and kind not in NOTES for kind, output in found)
            if track.covered != self._samples and not failed:
                find("count", name, f"compared on {track.covered} of {self._samples} samples")
            for kind, text in track.findings() if track.elements else ():
                find(kind, name, text)
            if not track.places and not failed:
                find("hollow", name, "it has no elements on either side, so nothing was compared")
            elif not track.elements and not failed:
                find("empty", name, "not one finite element was compared")
        if 0 < self._labelled < self._samples:
            find("unlabelled", None, f"accuracy is over the {self._labelled} samples that have labels")
        return {
            "samples": self._samples,
            "problems": [finding.as_json() for finding in found.values() if finding.kind not in NOTES],
            "notes": [finding.as_json() for finding in found.values() if finding.kind in NOTES],
            "outputs": {n: track.metrics() if track.elements else {} for n, track in self._outputs.items()},
        }

    def _add_output(self, name: str, r: Array, c: Array, samples: int | None, start: int) -> bool:
        kind, other = _kind(r.dtype), _kind(c.dtype)
        track = self._outputs.setdefault(name, _Track(kind))
        track.covered += 1 if samples is None else samples
        if r.shape != c.shape:
            self._find("shape", name, start, f"the candidate's shape is {c.shape}, the reference's {r.shape}")
        if not kind == other == track.kind:
            text = f"the candidate's dtype is {c.dtype}, the reference's {r.dtype} (at first {track.kind})"
            self._find("dtype", name, start, text)
        elif kind == "other":
            self._find("dtype", name, start, f"{r.dtype} cannot be compared; make it real or integer")
        elif r.shape == c.shape:
            track.places += r.size
            batched = r.ndim > 0 and r.shape[0] == samples
            rows, item = (r.shape[0], r.shape[1:]) if batched else (1, r.shape)
            size = math.prod(item)
            r, c, index = r.reshape(rows, size), c.reshape(rows, size), np.arange(start, start + rows)
            block = max(1, CHUNK_ELEMENTS // max(1, size))
            for part in (slice(top, top + block) for top in range(0, rows, block)):
                track.add(r[part], c[part], index[part], item, partial(self._find, output=name))
            return True
        return False

    def _add_labels(self, fits: list[str], r: Outputs, c: Outputs, labels: Array, count: int) -> None:
        name = self._label_output or (fits[0] if len(fits) == 1 else None)
        if labels.dtype.kind not in "iu":
            told = "not integers of one shape" if labels.dtype.kind == "O" else f"{labels.dtype}, not integers"
            self._find("labels", name, None, f"labels are {told}")
        elif name is None:
            text = f"no accuracy: labels {labels.shape} fit {len(fits)} outputs; name the one they belong to"
            self._find("unlabelled", None, None, text)
        elif name not in fits:
            self._find("labels", name, None, f"labels {labels.shape} do not fit this output")
        elif labels.max(initial=-1) >= (classes := np.shape(r[name])[-1]):
            self._find(
                "labels", name, None, f"the label {labels.max()} is none of its {classes} classes, 0 to {classes - 1}"
            )
        else:
            self._labelled += count
            known = labels >= 0
            right = [(np.asarray(outputs[name]).argmax(-1) == labels) & known for outputs in (r, c)]
            self._outputs[name].hits.append(np.stack([hit.reshape(count, -1).sum(1) for hit in (*right, known)]))

    def _find(self, kind: str, output: str | None, sample: int | None, text: str, times: int = 1) -> None:
        self._findings.setdefault((kind, output), _Finding(kind, output, sample, text, 0)).times += times


@dataclass
class _Finding:
    """A problem or a note: its first occurrence, and how often it was seen."""

    kind: str
    output: str | None
    sample: int | None
    text: str
    times: int = 1

    def as_json(self) -> dict[str, Any]:
        text = self.text if self.times <= 1 else f"{self.text} (first of {self.times})"
        return {"kind": self.kind, "output": self.output, "sample": self.sample, "text": text}


@dataclass
class _Track:
    """What is kept of one output; in pairs the reference comes first."""

    kind: str
    covered: int = 0
    elements: int = 0  # finite ones, compared
    places: int = 0  # finite or not
    blocks: list[dict[str, Array]] = field(default_factory=list)
    tallies: dict[str, tuple[int, int, int | None]] = field(default_factory=dict)  # misses, total, first
    hits: list[Array] = field(default_factory=list)  # (3, samples): the reference's, the candidate's, and the labels
    first: tuple[Array, Array] | None = None
    low: list[float] = field(default_factory=lambda: [math.inf, math.inf])
    high: list[float] = field(default_factory=lambda: [-math.inf, -math.inf])
    moved: list[float] = field(default_factory=lambda: [0.0, 0.0])  # largest |later sample - first sample|

    def add(self, ref: Array, cand: Array, index: Array, item: Shape, find: Callable[..., None]) -> None:
        """Add the samples `index`: `(rows, size)`, each of shape `item` before it was flattened."""
        rows, size = ref.shape
        kept = self.first = self.first or (ref[0].copy(), cand[0].copy())
        classes = item[-1] if self.kind == "float" and item and item[-1] > 1 else 0
        positions = size // classes if classes else 0
        step = max(1, CHUNK_ELEMENTS // rows // (classes or 1)) * (classes or 1)
        sums = {name: np.zeros(rows) for name in _SUMS}
        bad = np.zeros(rows, bool)
        for left in range(0, size, step):
            part = slice(left, left + step)
            r, c = ref[:, part].astype(np.float64), cand[:, part].astype(np.float64)
            hole = ~(np.isfinite(r) & np.isfinite(c))
            if hole.any():
                bad |= _nonfinite(r, c, left, index, item, find)
                r[hole] = c[hole] = 0
            for side, values in enumerate((r, c)):
                self._watch(side, values, kept[side][part].astype(np.float64))
            self.elements += hole.size - int(hole.sum())
            sums["max_abs"] = np.maximum(sums["max_abs"], np.abs(c - r).max(1))
            if self.kind != "float":
                raw = ref.dtype.kind in "iub" and cand.dtype.kind in "iub"  # float64 merges int64 past 2**53
                unequal = ref[:, part] != cand[:, part] if raw else r != c
                sums["unequal"] += unequal.sum(1) / size
                continue
            # Centred sums: shifted by the first chunk's mean, so that a large common offset does not cancel.
            if not left:
                mean_r, mean_c = (x.sum(1) / np.maximum((~hole).sum(1), 1) for x in (r, c))
            x, y = np.where(hole, 0, r - mean_r[:, None]), np.where(hole, 0, c - mean_c[:, None])
            pairs = {"rr": (r, r), "cc": (c, c), "rc": (r, c), "dd": (c - r, c - r)}
            for name, (a, b) in {**pairs, "xx": (x, x), "yy": (y, y), "xy": (x, y)}.items():
                sums[name] += np.einsum("ij,ij->i", a, b)
            for name, column in (("x", x), ("y", y), ("n", ~hole)):
                sums[name] += column.sum(1)
            if classes:
                r[hole] = c[hole] = -WORST_VALUE
                _add_class_sums(sums, r.reshape(rows, -1, classes), c.reshape(rows, -1, classes))
        for name in ("top1", "top5") if classes > 5 else ("top1",) if classes else ():
            misses = np.where(bad, positions, sums[name])
            before, total, first = self.tallies.get(f"{name}_agreement", (0, 0, None))
            first = int(index[misses > 0][0]) if first is None and misses.any() else first
            self.tallies[f"{name}_agreement"] = before + int(misses.sum()), total + positions * rows, first
        good = ~bad & np.isfinite(sum(sums.values()))  # sums overflow only beyond SAFE_RANGE
        sums["kl"] = sums["kl"] / positions if positions else np.full(rows, np.nan)
        self.blocks.append({**sums, "index": index, "good": good})

    def _watch(self, side: int, values: Array, first: Array) -> None:
        self.low[side] = min(self.low[side], float(values.min()))
        self.high[side] = max(self.high[side], float(values.max()))
        if first.shape == values.shape[1:]:  # sizes may differ along a dynamic dim
            first[~np.isfinite(first)] = 0
            self.moved[side] = max(self.moved[side], float(np.abs(values - first).max()))

    def findings(self) -> Iterator[tuple[str, str]]:
        """What is wrong with the case as a whole: (kind, text)."""
        ref, cand = (max(abs(low), abs(high)) for low, high in zip(self.low, self.high, strict=True))
        if max(ref, cand) > SAFE_RANGE[1] or 0 < ref < SAFE_RANGE[0]:
            yield "range", f"values up to {max(ref, cand):.3g}: outside {SAFE_RANGE} squares leave float64"
        if ref == 0 and cand > 0 and self.kind == "float":
            yield "zero_reference", f"the reference is zero throughout, the candidate reaches {cand:.3g}"
        varies, dead = (VARIES_SHARE * ref, DEAD_SHARE) if self.kind == "float" else (0.0, 0.0)
        spread = [high - low for low, high in zip(self.low, self.high, strict=True)]
        for (r, c), over in ((spread, "its elements"), (self.moved, "samples")):
            if r > varies and c <= dead * r:
                yield "constant", f"the candidate is constant over {over}, the reference varies by {r:.3g}"

    def metrics(self) -> dict[str, Any]:
        """The measured values by metric."""
        sums = {name: np.concatenate([block[name] for block in self.blocks]) for name in self.blocks[0]}
        columns = _float_metrics(sums) if self.kind == "float" else {"mismatch": sums["unequal"]}
        columns["max_abs"] = sums["max_abs"]
        measured = {name: _summary(name, column, sums) for name, column in columns.items()}
        for name, (misses, total, first) in self.tallies.items():
            count = {"disagreeing": misses, "total": total, "worst_sample": first}
            measured[name] = {"value": (total - misses) / total, **count}
        r, c, n = np.concatenate(self.hits, 1) if self.hits else np.zeros((3, 1), np.int64)
        if total := int(n.sum()):
            score = shares(r, c, n)
            measured["accuracy"] = {
                "value": score["value"], "interval": score["interval"], "reference": score["source"],
                "reference_interval": score["source_interval"], "candidate": score["value"], "total": total,
            }  # fmt: skip
            measured["accuracy_drop"] = {
                "value": score["change"], "interval": score["change_interval"], "method": score["method"],
                "total": total,
            }  # fmt: skip
        return measured


def _kind(dtype: np.dtype[Any]) -> str:
    name = dtype.name  # by name: the ml_dtypes types (bfloat16, float8, int4) all have kind 'V'
    starts = {"bfloat": "float", "float": "float", "int": "integer", "uint": "integer", "bool": "bool"}
    return next((kind for start, kind in starts.items() if name.startswith(start)), "other")


def _nonfinite(r: Array, c: Array, left: int, index: Array, item: Shape, find: Callable[..., None]) -> Array:
    """Which rows, `(rows,)` bool, have NaN or infinity on one side only; each kind is reported."""
    same = (r == c) | (np.isnan(r) & np.isnan(c))
    fine_r, fine_c = np.isfinite(r), np.isfinite(c)
    for kind, mask, text in (
        ("nonfinite", fine_r & ~fine_c, "NaN or infinity where the reference is finite"),
        ("reference", ~fine_r & ~same, "NaN or infinity in the reference, not matched by the candidate"),
        ("matching", ~fine_r & same, "the same NaN or infinity on both sides, left out"),
    ):
        if mask.any():
            row, column = np.argwhere(mask)[0]
            where = [int(i) for i in np.unravel_index(int(column) + left, item)]
            text += f": at {where} of sample {index[row]}"
            find(kind, sample=int(index[row]), text=text, times=int(mask.sum()))
    return np.asarray((~same & ~(fine_r & fine_c)).any(1))


def _add_class_sums(sums: dict[str, Array], r: Array, c: Array) -> None:
    """Add each row's KL divergences and top-1 and top-5 misses; r and c are `(rows, positions, classes)`."""
    classes, best = r.shape[-1], r.max(-1, keepdims=True)
    log_p, log_q = r - best, c - c.max(-1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    log_q -= np.log(np.exp(log_q).sum(-1, keepdims=True))
    kl = np.einsum("ijk,ijk->ij", np.exp(log_p), log_p - log_q)
    sums["kl"] += np.maximum(kl, 0).sum(1)  # rounding can leave -1e-17
    tied = r == best
    sums["top1"] += (~np.take_along_axis(tied, c.argmax(-1)[..., None], -1)).sum((1, 2))
    if classes > 5:
        target = np.where(tied, c, -np.inf).argmax(-1)[..., None]  # the tied class that c ranks best
        level = np.take_along_axis(c, target, -1)
        ahead = (c > level) | ((c == level) & (np.arange(classes) < target))
        sums["top5"] += (ahead.sum(-1) >= 5).sum(1)


def _float_metrics(sums: dict[str, Array]) -> dict[str, Array]:
    """Each metric per sample, `(samples,)`, from the sums of squares and products."""
    r, c, d = (np.sqrt(sums[name]) for name in ("rr", "cc", "dd"))
    rms = math.sqrt(float(np.mean(sums["rr"], where=sums["good"]))) if sums["good"].any() else 0.0
    zero = ZERO_SHARE * rms
    size = np.where(r <= zero, rms, r)
    rel = np.where(size > 0, np.minimum(d / size, REL_L2_CAP), np.where(d > 0, REL_L2_CAP, 0))
    equal = (d == 0) | ((r <= zero) & (d <= zero))
    cosine = np.where(equal, 1.0, np.where(r * c > 0, np.clip(sums["rc"] / (r * c), -1, 1), 0))
    n = np.maximum(sums["n"], 1)
    xx, yy, xy = (sums[a + b] - sums[a] * sums[b] / n for a, b in ("xx", "yy", "xy"))
    moves = (xx > 0) & (yy > 1e-24 * sums["cc"])  # 1e-12 of ||c||: less is float64 rounding
    centred = np.where(moves, np.clip(xy / (np.sqrt(xx) * np.sqrt(yy)), -1, 1), 0)
    flat = xx <= ZERO_SHARE**2 * sums["rr"]
    values = {"rel_l2": rel, "cosine": cosine, "centred_cosine": np.where(flat | equal, cosine, centred)}
    values["sqnr_db"] = -20 * np.log10(np.clip(rel, 1 / REL_L2_CAP, REL_L2_CAP))
    return values if np.isnan(sums["kl"]).any() else {**values, "kl": sums["kl"]}


def _summary(name: str, column: Array, sums: dict[str, Array]) -> dict[str, Any]:
    info, index, good = METRICS[name], sums["index"], sums["good"]
    higher = info.better == "higher"
    limit = info.low if higher else min(info.high, REL_L2_CAP if name == "rel_l2" else WORST_VALUE)
    column = np.where(good, np.clip(column, -WORST_VALUE, WORST_VALUE), limit)
    at = int(column.argmin() if higher else column.argmax())
    usual = column[good] if good.any() else column
    tail, percent = ("p05", 5) if higher else ("p95", 95)
    value = {"worst": float(column[at]), "worst_sample": int(index[at]), "mean": float(usual.mean())}
    value |= {"p50": float(np.median(usual)), tail: float(np.percentile(usual, percent))}
    best = info.high if higher else info.low
    return value | {"histogram": _histogram(usual, best)} if name in HISTOGRAMS else value


def _histogram(column: Array, best: float) -> dict[str, Any]:
    """How many samples are perfect, and of the others how many lie in each of equal bins from low to high."""
    rest = column[column != best]
    low, high = (float(rest.min()), float(rest.max())) if len(rest) else (best, best)
    apart = high - low > 1e-9 * max(abs(low), abs(high))  # nearer values differ by the order of sums alone
    counts = np.histogram(rest, BINS, (low, high))[0] if apart else np.array([len(rest)])
    return {"perfect": len(column) - len(rest), "low": low, "high": high, "counts": counts.tolist()}
