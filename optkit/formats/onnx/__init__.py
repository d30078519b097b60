"""ONNX files: read, run, looked into, quantised and tidied."""
