"""Export of networks to ONNX, and reading, running and differentiating of ONNX files."""
