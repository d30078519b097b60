"""What the tests of the layer to blame share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
