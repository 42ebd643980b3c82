"""Floor 0: arrays in, bytes out. What both ends must agree on, and nothing else.

Imports numpy, numba and msgspec only; never torch, onnx, onnxruntime or a runtime of ours
(`codec.design` adds scipy and is imported by the exporter alone).
"""
