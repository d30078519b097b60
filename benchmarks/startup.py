"""How long the small commands take, against the imports they cannot do without.

Usage: python benchmarks/startup.py [--rounds N]. Whole processes, in turn; medians and ratios. Prints a table.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLAN_IMPORTS = """
import click, yaml, numpy
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
"""
PAIRS = [
    ("optkit --help", ["-m", "optkit", "--help"], "import click", ["-c", "import click"], 3.0),
    (
        "optkit plan recipes/digits.yaml",
        ["-m", "optkit", "plan", "recipes/digits.yaml"],
        "import click, yaml, numpy, pydantic, rich",
        ["-c", PLAN_IMPORTS],
        2.0,
    ),
]


def seconds(arguments: list[str]) -> float:
    """Wall seconds of one python process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - started


def main() -> None:
    """Run the pairs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"{'command':34} {'ms':>6}   {'against':44} {'ms':>6}  {'ratio':>6}  goal")
    for name, mine, other, theirs, goal in PAIRS:
        pairs = [(seconds(mine), seconds(theirs)) for _ in range(rounds + 2)][2:]
        ratio = statistics.median(a / b for a, b in pairs)
        a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name:34} {a * 1e3:6.0f}   {other:44} {b * 1e3:6.0f}  {ratio:6.2f}  <= {goal:g}")


if __name__ == "__main__":
    main()
