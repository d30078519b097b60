"""What the tests of the layer to blame share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino_models
from onnx_models import feed_of, images

from optkit.artifact import Artifact
from optkit.parity import layers
from optkit.registry import get_runner

if TYPE_CHECKING:
    from optkit.plugin import Tensors


IMAGES = [feed_of(image) for image in images(2, seed=5)]


def look(other: Artifact, artifact: Artifact, feeds: Sequence[Tensors], **more: Any) -> dict[str, Any]:
    """What is found of an artifact beside another on feeds that both take."""
    assert other.signature is not None
    outputs = [spec.name for spec in other.signature.outputs]
    pairs = [(feed, feed) for feed in feeds]
    for one in get_runner(other.format).inside:
        with one(other) as theirs, get_runner(artifact.format).inside[0](artifact) as mine:
            found = layers.localise(theirs, mine, pairs, outputs, **more)
        if found is not None:
            return {"against": "parent", **found}
    raise AssertionError("no common tensors")


def rounded(folder: Path, bad: str = "") -> Artifact:
    """`openvino_models.cnn` with a FakeQuantize behind each ReLU, that of `bad` over a twentieth of the range."""
    ops = openvino_models.ops
    model = openvino_models.cnn()
    for op in model.get_ordered_ops():
        if op.get_type_name() == "Relu":
            readers = list(op.output(0).get_target_inputs())
            high = np.float32(0.2 if op.get_friendly_name() == bad else 8.0)
            quantised = ops.fake_quantize(op, np.float32(0), high, np.float32(0), high, 256,
                                          name=f"{op.get_friendly_name()}/fq_output_0")  # fmt: skip
            for reader in readers:
                reader.replace_source_output(quantised.output(0))
    model.validate_nodes_and_infer_types()
    return openvino_models.written(model, folder, openvino_models.IMAGE)
