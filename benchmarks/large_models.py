"""Big ONNX models: a run with nothing to do, and the peak memory of each pass.

Usage: python benchmarks/large_models.py nothing [--mb 100 3000]     seconds of a wholly cached run
       python benchmarks/large_models.py memory [--mb 1500]           each pass's peak memory over the model's bytes
Makes a model of stacked MatMul layers with random weights in a temporary folder. Prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WIDTH = 4096
RECIPE = """
version: 1
name: large
model: {{onnx: {model}}}
inputs: {{x: {{shape: [batch, {width}], range: [-1, 1]}}}}
dims: {{batch: {{min: 1, opt: 2, max: 4}}}}
data: {{judge: {{random: 4}}, fit: {{random: 4, seed: 1}}}}
check_on: judge
steps:
{steps}
"""
NOTHING_STEPS = "  - {id: ov, to: openvino}\n"
MEMORY_STEPS = """\
  - {id: slim, use: onnx.simplify}
  - {id: half, use: onnx.fp16}
  - {id: dynamic, use: onnx.quantize, with: {method: dynamic}, check: ["cosine >= 0.5"]}
  - {id: static, use: onnx.quantize, data: fit, check: ["cosine >= 0.5"]}
  - {id: ov, to: openvino}
  - {id: ov-half, from: ov, use: openvino.fp16}
  - {id: ov-int8-weights, from: ov, use: openvino.compress_weights, check: ["cosine >= 0.5"]}
"""


def make_model(path: Path, megabytes: int) -> None:
    """Write a float32 model x (batch, 4096) -> y (batch, 4096) of about that many MB, weights as external data."""
    import onnx
    from onnx import TensorProto, helper

    layers = max(1, round(megabytes * 1e6 / (4 * WIDTH * WIDTH)))
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    data = path.with_name(path.name + ".data")
    with data.open("wb") as sink:
        for i in range(layers):
            name = f"w{i}"
            matrix = (rng.standard_normal((WIDTH, WIDTH), dtype=np.float32) / np.sqrt(WIDTH)).astype(np.float32)
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", sink.tell()), ("length", matrix.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            sink.write(matrix.tobytes())
            weights.append(tensor)
            nodes.append(
                helper.make_node(
                    "MatMul", ["x" if i == 0 else f"h{i}", name], ["y" if i == layers - 1 else f"h{i + 1}"]
                )
            )
    shape = ["batch", WIDTH]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def run(folder: Path, recipe: Path) -> tuple[float, dict[str, object]]:
    """Wall seconds of `optkit convert` and its report."""
    env = dict(os.environ, OPTKIT_CACHE=str(folder / "cache"))
    command = [sys.executable, "-m", "optkit", "convert", str(recipe), "--out", str(folder / "out"), "--jobs", "1"]
    started = time.perf_counter()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    report = folder / "out" / "report.json"
    if not report.exists():
        sys.exit(done.stderr[-3000:])
    return seconds, json.loads(report.read_text(encoding="utf-8"))


def nothing(sizes: list[int]) -> None:
    """The table of wholly cached runs."""
    print(f"{'model MB':>9} {'first run s':>12} {'nothing to do s':>16}   (goal < 1)")
    for megabytes in sizes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            make_model(folder / "model.onnx", megabytes)
            recipe = folder / "recipe.yaml"
            recipe.write_text(RECIPE.format(model="model.onnx", width=WIDTH, steps=NOTHING_STEPS), encoding="utf-8")
            time.sleep(2.1)  # a file younger than two seconds is not remembered
            first, report = run(folder, recipe)
            if report["exit_code"]:
                print(json.dumps(report["steps"], indent=1)[:3000])
            again = sorted(run(folder, recipe)[0] for _ in range(5))
            print(f"{megabytes:9} {first:12.1f} {again[2]:16.2f}   {again[0]:.2f}-{again[-1]:.2f}", flush=True)


def memory(sizes: list[int]) -> None:
    """The table of peak memory per pass, each in a worker of its own."""
    for megabytes in sizes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            make_model(folder / "model.onnx", megabytes)
            size = sum(p.stat().st_size for p in folder.iterdir())
            recipe = folder / "recipe.yaml"
            recipe.write_text(RECIPE.format(model="model.onnx", width=WIDTH, steps=MEMORY_STEPS), encoding="utf-8")
            _, report = run(folder, recipe)
            print(f"{'pass':26} {'status':8} {'peak MB':>8} {'x model':>8}   model {size / 1e6:.0f} MB (goal <= 2.5)")
            steps: list[dict[str, object]] = report["steps"]  # type: ignore[assignment]
            for step in steps:
                peak = step["peak_bytes"]
                shown = f"{peak / 1e6:8.0f} {peak / size:8.2f}" if isinstance(peak, int) else f"{'-':>8} {'-':>8}"
                print(f"{step['pass']:26} {step['status']:8} {shown}")
                if step["error"]:
                    print("   ", step["error"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["nothing", "memory"])
    parser.add_argument("--mb", type=int, nargs="+")
    chosen = parser.parse_args()
    if chosen.what == "nothing":
        nothing(chosen.mb or [100, 3000])
    else:
        memory(chosen.mb or [1500])
