"""Whether calibration needs more memory for more samples: the peak of each pass on 100 and on 10 000 images.

Usage: python benchmarks/calibration_memory.py [--samples 100 10000] [--side 224] [--only PATTERN]
Makes a small convolutional network with random weights, and images of 3 x side x side that are generated one at a time.
Each pass runs in a process of its own; the number is the most memory that was resident in it. Prints a table; exits 1
where a pass's peak with the most samples is over 1.25 times that with the fewest; the allocator alone moves it by a
tenth, and NNCF's full bias correction holds a fifth of the samples, up to 60.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optkit
from optkit.artifact import Artifact, Dim
from optkit.data import open_dataset
from optkit.plugin import Context
from optkit.registry import get_pass, get_runner
from optkit.spec.dataspec import parse_data

NET = '''
import torch
from torch import nn


def build():
    """A network of four convolutions: (batch, 3, side, side) to (batch, 10)."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
    layers += [nn.Conv2d(32, 32, 3, 2, 1, groups=32), nn.ReLU(), nn.Conv2d(32, 64, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
'''
IMAGES = '''
import numpy as np


def images():
    """COUNT different images, each made when it is asked for."""
    base = np.random.default_rng(0).standard_normal((3, SIDE, SIDE), np.float32)
    for number in range(COUNT):
        rng = np.random.default_rng(number)
        yield {"image": np.roll(base, number, axis=2) * rng.uniform(0.5, 2, (3, 1, 1)).astype(np.float32)}
'''
RECIPE = """
version: 1
name: calibration-memory
model: {{torch: net.py:build}}
inputs: {{image: {{shape: [batch, 3, {side}, {side}]}}}}
dims: {{batch: {{min: 1, opt: 2, max: 16}}}}
data: {{judge: {{random: 2}}}}
check_on: judge
steps:
  - {{id: onnx, to: onnx}}
  - {{id: ov, from: onnx, to: openvino}}
  - {{id: lite, to: tflite, with: {{sizes: {{batch: [1]}}}}}}
deliver: [onnx, ov, lite]
"""
PASSES = {
    "minmax": ("onnx", "onnx.quantize", {}),
    "entropy": ("onnx", "onnx.quantize", {"calibration": "entropy"}),
    "percentile": ("onnx", "onnx.quantize", {"calibration": "percentile"}),
    "mse": ("onnx", "onnx.quantize", {"calibration": "mse"}),
    "equalise-fast": ("onnx", "onnx.quantize", {"equalise": True, "correct_bias": "fast"}),
    "smooth": ("onnx", "onnx.quantize", {"smooth_quant": 0.5}),
    "full": ("onnx", "onnx.quantize", {"correct_bias": "full"}),
    "gptq": ("onnx", "onnx.quantize", {"rounding": "gptq"}),
    "openvino": ("ov", "openvino.quantize", {}),
    "openvino-histogram": ("ov", "openvino.quantize", {"range_estimator": "histogram"}),
    "openvino-quantile": ("ov", "openvino.quantize", {"range_estimator": "quantile"}),
    "openvino-full": ("ov", "openvino.quantize", {"fast_bias_correction": False}),
    "tflite": ("lite", "tflite.quantize", {"mode": "static"}),
    "tflite-average": ("lite", "tflite.quantize", {"mode": "static", "calibration": "moving_average"}),
}


def parents(folder: Path, side: int) -> dict[str, str]:
    """The folders of what the passes start from, by step."""
    (folder / "net.py").write_text(NET, encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(side=side), encoding="utf-8")
    report = optkit.convert(recipe, out=folder / "out", cache=folder / "cache")
    return {name: str(report.path(name)) for name in ("onnx", "ov", "lite")}


def calibrate(folder: Path, name: str, parent: str, count: int, side: int) -> None:
    """Run one pass in this process, on `count` images, and print the most bytes that were resident."""
    _, use, options = PASSES[name]
    work, dims = get_pass(use), {"batch": Dim(1, 2, 16)}
    runner = get_runner(work.source)
    path = Path(parent) / runner.main
    signature = runner.describe(path, {"dims": {"batch": dims["batch"].to_json()}})
    artifact = Artifact(work.source, path, "", signature, tuple(p.name for p in path.parent.iterdir()))
    code = IMAGES.replace("COUNT", str(count)).replace("SIDE", str(side))
    (folder / "images.py").write_text(code, encoding="utf-8")
    spec = parse_data({"python": "images.py:images"})
    data = open_dataset(spec, folder, signature.inputs, dims, "fit")
    given = options | ({"subset_size": count} if use == "openvino.quantize" else {})
    outputs = tuple(spec.name for spec in signature.outputs)
    for sub in ("scratch", "made"):
        (folder / sub).mkdir()
    context = Context(signature.inputs, outputs, dims, folder / "scratch", data)
    notes = work.run(artifact, folder / "made", work.options.model_validate(given), context)
    assert notes["samples"] == count, notes
    status = Path("/proc/self/status").read_text(encoding="ascii")
    print(int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) * 1024)


def peak(name: str, parent: str, count: int, side: int) -> tuple[int, float]:
    """The most memory that a pass needed on so many images, in bytes, and its seconds."""
    with tempfile.TemporaryDirectory() as temporary:
        started = time.perf_counter()
        command = [sys.executable, __file__, "--child", json.dumps([temporary, name, parent, count, side])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        return int(done.stdout.split()[-1]), time.perf_counter() - started


def table(made: dict[str, str], counts: list[int], side: int, pattern: str) -> bool:
    """Print a row for each pass; whether none needs more for more samples."""
    heads = "".join(f"{f'{n} samples, MB':>20}" for n in counts)
    print(f"{'pass':18} {'options':44}{heads} {'ratio':>7} {'seconds':>9}")
    flat = True
    for name, (parent, use, options) in PASSES.items():
        if not re.search(pattern, name):
            continue
        found = [peak(name, made[parent], count, side) for count in counts]
        peaks, seconds = [most for most, _ in found], found[-1][1]
        ratio = peaks[-1] / peaks[0]
        flat = flat and ratio <= 1.25
        shown = "".join(f"{value / 1e6:20.0f}" for value in peaks)
        told = ", ".join(f"{key}: {value}" for key, value in options.items())
        print(f"{use:18} {told:44}{shown} {ratio:7.2f} {seconds:9.0f}", flush=True)
    return flat


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[100, 10000])
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--only", default="", help="a regular expression over the passes' names")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        place, *rest = json.loads(chosen.child)
        calibrate(Path(place), *rest)
        sys.exit(0)
    with tempfile.TemporaryDirectory() as temporary:
        made = parents(Path(temporary), chosen.side)
        sys.exit(0 if table(made, sorted(chosen.samples), chosen.side, chosen.only) else 1)
