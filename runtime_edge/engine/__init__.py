"""The engine: the front graph on an execution provider of ONNX Runtime.

opening.py     opens an ONNX Runtime session on a provider
optimised.py   optimised graphs for the CPU, kept in the cache folder
engine.py      Engine: runs the graph, says where it runs, and builds a TensorRT engine while the CPU serves
"""

from splitwire.codec.shared.providers import CPU, CUDA, TENSORRT, short_name

from .engine import Engine, open_engine

__all__ = ["CPU", "CUDA", "TENSORRT", "Engine", "open_engine", "short_name"]
