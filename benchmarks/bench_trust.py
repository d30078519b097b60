"""How far `optkit bench` can be trusted on a busy machine: false alarms, and a slowdown of 10 % that is there.

Usage: python benchmarks/bench_trust.py [--trials 10] [--seconds 2] [--load 1]. The same ONNX file is raced against
itself, with and without other processes that each keep a core busy on and off, and against a file that computes a tenth
more (22 layers for 20). Prints a table; under 5 minutes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optkit.speed.benching import bench

WIDTH, LAYERS, MORE = 512, 20, 22
TRUE_RATIO = LAYERS / MORE


def net(path: Path, layers: int) -> Path:
    """An ONNX file of equal linear layers, whose time is in proportion to their number."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array((rng.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32), f"w{n}")
        for n in range(layers)
    ]
    names = ["x", *(f"h{n}" for n in range(1, layers)), "y"]
    nodes = [helper.make_node("MatMul", [names[n], f"w{n}"], [names[n + 1]]) for n in range(layers)]
    put, got = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [16, WIDTH]) for n in "xy")
    graph = helper.make_graph(nodes, "net", [put], [got], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def busy(seed: int) -> None:
    """Use a core for a while, then leave it, and so on."""
    order = random.Random(seed)
    while True:
        until = time.monotonic() + order.uniform(0.02, 0.4)
        while time.monotonic() < until:
            sum(range(1000))
        time.sleep(order.uniform(0.02, 0.4))


@contextmanager
def load(processes: int) -> Iterator[None]:
    """As many busy processes meanwhile."""
    workers = [multiprocessing.get_context("spawn").Process(target=busy, args=(n,)) for n in range(processes)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def trial(base: Path, other: Path, seconds: float) -> dict[str, Any]:
    """The second file's row beside the first."""
    found = bench([base, other], threads=[1], seconds=seconds)
    row: dict[str, Any] = found["rows"][1]
    return row


def main() -> None:
    """Run the trials and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--load", type=int, default=1, help="how many busy processes")
    chosen = parser.parse_args()
    print(f"{os.cpu_count()} cores, load average before: {os.getloadavg()[0]:.1f}")
    print(f"{'races':34} {'true':>6} {'median':>7} {'lowest':>7} {'highest':>7} {'within 5 %':>11} {'called':>30}")
    with tempfile.TemporaryDirectory() as folder:
        base, slower = net(Path(folder) / "base.onnx", LAYERS), net(Path(folder) / "slower.onnx", MORE)
        for title, other, processes, true in (
            ("a file against itself", base, 0, 1.0),
            ("the same, under load", base, chosen.load, 1.0),
            ("10 % more work, under load", slower, chosen.load, TRUE_RATIO),
        ):
            with load(processes):
                rows = [trial(base, other, chosen.seconds) for _ in range(chosen.trials)]
            ratios = sorted(row["ratio"]["value"] for row in rows)
            near = sum(abs(r / true - 1) <= 0.05 for r in ratios)
            called = {word: sum(row["verdict"] == word for row in rows) for word in ("slower", "same", "faster")}
            told = ", ".join(f"{word} {count}" for word, count in called.items() if count)
            middle = ratios[len(ratios) // 2]
            print(f"{title:34} {true:6.3f} {middle:7.3f} {ratios[0]:7.3f} {ratios[-1]:7.3f} "
                  f"{f'{near} of {len(rows)}':>11} {told:>30}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
