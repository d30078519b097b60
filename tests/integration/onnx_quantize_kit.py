"""Samples and runs that the tests of onnx.quantize share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx_models import feed_of, images, infer, made, sqnr_db, texts

from optkit.artifact import Artifact
from optkit.passes.onnx_quantize import PASS
from optkit.testing import ListSamples

IMAGES, TEXTS = ListSamples(images(24)), ListSamples(texts(24))


def quantised(source: Artifact, folder: Path, data: Any = None, **options: Any) -> tuple[Artifact, Any]:
    result, notes, complaints = made(PASS, source, folder, data, **options)
    assert complaints == []
    onnx.checker.check_model(str(result.path), full_check=True)
    assert result.signature == source.signature
    return result, notes


def worst(source: Artifact, result: Artifact, samples: Any) -> float:
    """dB of the worst of ten samples that were not calibrated on."""
    feeds = [feed_of(sample) for sample in samples(10, seed=7)]
    return min(sqnr_db(infer(source, feed)[0], infer(result, feed)[0]) for feed in feeds)


BUILD = """
import sys
import tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(0)
parser = trt.OnnxParser(network, logger)
if not parser.parse_from_file(sys.argv[1]):
    sys.exit("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM86, 0)
profile = builder.create_optimization_profile()
profile.set_shape("image", (1, 3, 16, 16), (4, 3, 16, 16), (8, 3, 16, 16))
config.add_optimization_profile(profile)
engine = builder.build_serialized_network(network, config)
print("none" if engine is None else engine.nbytes)
"""
"""A program that reads an ONNX file with TensorRT-RTX's own parser, and builds an engine of it."""
