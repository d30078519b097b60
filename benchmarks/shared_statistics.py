"""What three targets of one model cost over one, where the statistics of its activations are found once for all.

Usage: python benchmarks/shared_statistics.py [--samples 200] [--side 224]
The targets: onnxruntime, TensorRT, and OpenVINO, which reads the int8 ONNX of a step with symmetric ranges. Each row is
`onnx.quantize` with another calibration: seconds of one step, of the three as a run does them, and of the three when
each finds its own. Same network and images as in calibration_memory.py; prints a table.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from calibration_memory import IMAGES, parents

from optkit.artifact import Artifact, Dim
from optkit.caching.sharing import Shared
from optkit.data import open_dataset
from optkit.plugin import Context
from optkit.registry import get_pass, get_runner
from optkit.spec.dataspec import parse_data

TARGETS: tuple[dict[str, object], ...] = ({}, {"for": "tensorrt"}, {"symmetric": True, "activation_type": "int8"})


def seconds(folder: Path, artifact: Artifact, options: list[dict[str, object]], key: str | None) -> float:
    """How long steps take, one after the other; key: of what they share, None where each is on its own."""
    work, dims = get_pass("onnx.quantize"), {"batch": Dim(1, 2, 16)}
    assert artifact.signature is not None
    inputs = artifact.signature.inputs
    shared = Shared({"root": str(folder / "cache"), "key": key}, lambda text, done: None) if key else None
    started = time.perf_counter()
    for one in options:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            place = Path(temporary)
            (place / "scratch").mkdir()
            (place / "made").mkdir()
            data = open_dataset(parse_data({"python": "images.py:images"}), folder, inputs, dims, "fit")
            context = Context(inputs, ("logits",), dims, place / "scratch", data, shared=shared)
            work.run(artifact, place / "made", work.options.model_validate(one), context)
    return time.perf_counter() - started


def main(count: int, side: int) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = Path(parents(folder, side)["onnx"]) / "model.onnx"
        code = IMAGES.replace("COUNT", str(count)).replace("SIDE", str(side))
        (folder / "images.py").write_text(code, encoding="utf-8")
        signature = get_runner("onnx").describe(path, {"dims": {"batch": Dim(1, 2, 16).to_json()}})
        artifact = Artifact("onnx", path, "digest", signature, tuple(p.name for p in path.parent.iterdir()))
        seconds(folder, artifact, [{}], None)  # imports
        print(f"{'calibration':12} {'one s':>8} {'three s':>8} {'ratio':>6} {'apart s':>8} {'ratio':>6}   goal <= 1.2")
        for calibration in ("minmax", "entropy", "mse"):
            steps = [{**target, "calibration": calibration} for target in TARGETS]
            turns = [
                (
                    seconds(folder, artifact, steps[:1], f"one {calibration} {turn}"),
                    seconds(folder, artifact, steps, f"three {calibration} {turn}"),
                    seconds(folder, artifact, steps, None),
                )
                for turn in range(3)
            ]
            one, three, apart = (sorted(found)[1] for found in zip(*turns, strict=True))
            print(f"{calibration:12} {one:8.2f} {three:8.2f} {three / one:6.2f} {apart:8.2f} {apart / one:6.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--side", type=int, default=224)
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(chosen.samples, chosen.side)
