"""An ONNX graph in torch's operations, so that gradients flow through it."""
