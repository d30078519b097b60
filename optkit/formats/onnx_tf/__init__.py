"""ONNX graphs rebuilt in TensorFlow, operator by operator; `translate` puts them together."""
