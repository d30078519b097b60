"""`Build`, with every operator entered."""

from optkit.formats.onnx_tf import arithmetic, image, quantise, recurrent, resize, shape
from optkit.formats.onnx_tf.translate import OPERATORS, Build

__all__ = ["OPERATORS", "Build", "arithmetic", "image", "quantise", "recurrent", "resize", "shape"]
