"""TFLite files: read, run, looked into, made from torch, ONNX and TensorFlow, and quantised."""
