"""What drawing a report costs: bytes, seconds and imported modules of each form, for a run with a number of deliveries.

python benchmarks/report_size.py build/digits --deliveries 10

The deliveries of a real report are repeated, or left out, until there are as many as asked. Each form is drawn in a
process of its own, which is timed from its start; the median of five.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HEAVY = ("numpy", "torch", "onnx", "onnxruntime", "openvino", "tensorflow", "pydantic", "rich")
DRAW = """
import json, sys
from pathlib import Path
from optkit.reports.files import draw
text = draw(sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
Path(sys.argv[3]).write_text(text, encoding="utf-8")
print(json.dumps([len(sys.modules), [name for name in sys.argv[4:] if name in sys.modules]]))
"""


def with_deliveries(report: dict[str, Any], wanted: int) -> dict[str, Any]:
    """The report with as many deliveries, each of a step with its whole check; repeated ones get a number."""
    steps = {step["id"]: step for step in report["steps"]}
    rows = [row for row in report["deliver"] if (steps[row["step"]].get("check") or {}).get("cases")]
    if not rows:
        raise SystemExit("error: the report has no delivery with a check\n  try: that of a run of recipes/digits.yaml")
    made, delivered = list(report["steps"]), []
    for number in range(wanted):
        row = copy.deepcopy(rows[number % len(rows)])
        if number >= len(rows):
            step = copy.deepcopy(steps[row["step"]])
            step["id"] = row["step"] = f"{step['id']}-{number}"
            made.append(step)
        delivered.append(row)
    return report | {"steps": made, "deliver": delivered}


def main() -> None:
    """Print a row for each form."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="a folder that optkit convert wrote")
    parser.add_argument("--deliveries", type=int, default=10)
    given = parser.parse_args()
    report = json.loads((given.run / "report.json").read_text(encoding="utf-8"))
    data = with_deliveries(report, given.deliveries)
    print(f"{given.deliveries} deliveries, {len(data['steps'])} steps")
    print(f"{'form':<10}{'kB':>8}{'seconds':>10}{'modules':>9}  of them heavy")
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "report.json", Path(folder) / "drawn"
        source.write_text(json.dumps(data), encoding="utf-8")
        for form in ("html", "markdown", "junit"):
            seconds = []
            for _ in range(5):
                start = time.perf_counter()
                line = [sys.executable, "-c", DRAW, form, str(source), str(made), *HEAVY]
                told = subprocess.run(line, capture_output=True, text=True, check=True).stdout
                seconds.append(time.perf_counter() - start)
            modules, heavy = json.loads(told)
            size, took = made.stat().st_size / 1000, statistics.median(seconds)
            print(f"{form:<10}{size:>8.0f}{took:>10.2f}{modules:>9}  {', '.join(heavy) or 'none'}")


if __name__ == "__main__":
    main()
