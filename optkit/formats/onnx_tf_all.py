"""`Build`, with every operator entered."""

from optkit.formats import (
    onnx_tf_image,
    onnx_tf_math,
    onnx_tf_quantise,
    onnx_tf_recurrent,
    onnx_tf_resize,
    onnx_tf_shape,
)
from optkit.formats.onnx_tf import OPERATORS, Build

__all__ = ["OPERATORS", "Build", "onnx_tf_image", "onnx_tf_math", "onnx_tf_quantise", "onnx_tf_recurrent",
           "onnx_tf_resize", "onnx_tf_shape"]  # fmt: skip
