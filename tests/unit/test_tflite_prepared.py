"""What is said of a TFLite file that LiteRT reads and cannot prepare."""

from __future__ import annotations

import pytest

from optkit.formats.tflite.session import _prepared


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("lhs_data->type == rhs_data->type was not true.Node number 63 (BATCH_MATMUL) failed to prepare.",
         "LiteRT has no kernel for BATCH_MATMUL of these types"),
        ("Encountered unresolved custom op: edgetpu-custom-op.", "it is compiled for the Edge TPU"),
        ("Select TensorFlow op(s), included in the given model", "convert it again without custom"),
        ("something else", "convert it again"),
    ],
)  # fmt: skip
def test_the_hint_names_what_mends_it(said: str, hint: str) -> None:
    assert _prepared(RuntimeError(said)).startswith(hint)
