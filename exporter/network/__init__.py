"""A module or an ONNX file → one checked graph with one image input."""
