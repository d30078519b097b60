"""TensorRT and TensorRT-RTX: their engines, and what they refuse."""
