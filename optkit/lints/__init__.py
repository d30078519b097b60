"""What each runtime refuses of an ONNX file: a module per target, each with `look(path, model)`."""
