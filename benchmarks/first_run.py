"""First run of a recipe against a plain script by hand that does the same conversions and comparisons in order.

Usage: python benchmarks/first_run.py [digits] [minilm] [--rounds N]. Whole processes, empty cache, run in turn
A B A B, so that a drift of the machine's speed hits both; the ratio is taken pair by pair. Prints a table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# What the plain scripts do as well; a recipe's other deliveries are left out of the comparison.
COMPARED = {
    "digits": ["slim", "onnx-fp16", "onnx-int8", "ov-fp16", "ov-int8"],
    "minilm": ["fused", "onnx-int8", "ov-int8"],
}


def timed(command: list[str], env: dict[str, str]) -> float:
    """Seconds of wall time of a whole process. Raises CalledProcessError if it fails."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return seconds


def main() -> None:
    """Run the pairs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=["digits", "minilm"])
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    print(f"{'recipe':10} {'optkit s':>24} {'plain script s':>24} {'ratio (median, min-max)':>26}")
    for name in chosen.recipes:
        ours, theirs = [], []
        for turn in range(chosen.rounds + 1):  # the first round warms the page cache and is not counted
            with tempfile.TemporaryDirectory() as folder:
                env = dict(os.environ, OPTKIT_CACHE=f"{folder}/cache")
                convert = [sys.executable, "-m", "optkit", "convert", f"recipes/{name}.yaml", "--out", f"{folder}/out"]
                convert += [part for step in COMPARED[name] for part in ("--only", step)]
                mine = timed(convert, env)
                plain = timed([sys.executable, f"benchmarks/plain_{name}.py", f"{folder}/plain"], env)
            if turn:
                ours.append(mine)
                theirs.append(plain)
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(f"{name:10} {_spread(ours):>24} {_spread(theirs):>24} {spread:>26}", flush=True)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


if __name__ == "__main__":
    main()
