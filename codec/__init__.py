"""The codec: feature tensors to frames and back. It holds everything that both ends must agree on, and nothing else.

It imports numpy, numba and msgspec only: never torch, onnx, onnxruntime or one of our runtimes.
`codec.design` adds scipy; only the exporter, the evaluation and the benchmarks import it.
"""
