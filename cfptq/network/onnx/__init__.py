"""ONNX in and out: networks written to files, files read as networks."""
