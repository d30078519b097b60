"""What an engineer would write by hand for recipes/digits.yaml: the same conversions and comparisons.

Usage: python benchmarks/plain_digits.py OUT_FOLDER. Prints each artifact's worst cosine. The baseline of first_run.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxsim import simplify
from plain_common import compare, onnx_infer, openvino_infer, sweep

ROOT = Path(__file__).resolve().parents[1]


class Reader(CalibrationDataReader):
    """The calibration images, one at a time."""

    def __init__(self, images: np.ndarray) -> None:
        self.feeds: Iterator[dict[str, np.ndarray]] = iter([{"image": image[None]} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next feed, image: (1, 1, 32, 32) float32."""
        return next(self.feeds, None)


def main(out: Path) -> None:
    """Convert, quantise, compare."""
    import nncf
    from safetensors.torch import load_file

    sys.path.insert(0, str(ROOT / "recipes" / "models"))
    from digits import build

    out.mkdir(parents=True, exist_ok=True)
    with np.load(ROOT / "calibration" / "digits-fit.npz") as stored:
        fit = stored["image"]
    with np.load(ROOT / "calibration" / "digits-judge.npz") as stored:
        judge = stored["image"]
    module = build()
    module.load_state_dict(load_file(ROOT / "recipes" / "models" / "digits.safetensors"))
    module.eval()

    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.onnx.export(
        module,
        (torch.zeros(8, 1, 32, 32),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(str(out / "model.onnx"))
    slim, _ = simplify(onnx.load(out / "model.onnx"))
    onnx.save(slim, out / "slim.onnx")
    onnx.save(convert_float_to_float16(slim, keep_io_types=True), out / "fp16.onnx")
    quantize_static(
        out / "slim.onnx",
        out / "int8.onnx",
        Reader(fit),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
    ir = openvino.convert_model(out / "slim.onnx")
    openvino.save_model(ir, out / "ov.xml", compress_to_fp16=False)
    openvino.save_model(ir, out / "ov16.xml", compress_to_fp16=True)
    small = nncf.quantize(ir, nncf.Dataset([image[None] for image in fit]), subset_size=len(fit))
    openvino.save_model(small, out / "ov8.xml", compress_to_fp16=False)

    def source(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {"logits": module(torch.from_numpy(feeds["image"])).numpy()}

    cases = list(sweep({"image": judge}, batch_sizes=(1, 8, 64, 33), at=8))
    reference = [source(feeds) for feeds in cases]
    files = {name: f"{name}.onnx" for name in ("model", "slim", "fp16", "int8")}
    files |= {name: f"{name}.xml" for name in ("ov", "ov16", "ov8")}
    for name, file in files.items():
        infer = onnx_infer(onnxruntime, out / file) if file.endswith(".onnx") else openvino_infer(openvino, out / file)
        print(f"{name:8} {compare(infer, cases, reference)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
