"""Where a recipe's time and memory go: seconds of each pass and its check, peak memory, size and parity.

Usage: python benchmarks/recipe_table.py [recipes/resnet50.yaml ...]. Runs each with an empty cache and prints a table.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from optkit.cache import Cache
from optkit.execute import execute
from optkit.planning import make_plan
from optkit.recipe import load_recipe
from optkit.reports.rows import parity

ROOT = Path(__file__).resolve().parents[1]


def main(recipes: list[str]) -> None:
    """Run the recipes and print the tables."""
    for path in recipes or [str(ROOT / "recipes" / "resnet50.yaml")]:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            report = execute(make_plan(load_recipe(path)), out=folder / "out", cache=Cache(folder / "cache"))
        print(f"{path}: exit code {report.exit_code}, {report.data['seconds']:.1f} s")
        head = ("step", "pass", "status", "pass s", "check s", "peak MB", "size MB")
        print("{:12} {:26} {:8} {:>7} {:>8} {:>8} {:>8}  parity with the source".format(*head))
        for step in report.steps:
            peak = (step["peak_bytes"] or 0) / 1e6
            size = step["artifact"]["size_bytes"] / 1e6 if step["artifact"] else 0.0
            seconds = step["seconds"]
            print(
                f"{step['id']:12} {step['pass']:26} {step['status']:8} {seconds['run']:7.1f} {seconds['check']:8.1f} "
                f"{peak:8.0f} {size:8.1f}  {parity(step)}"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
