"""Two graphs and a profile → front.onnx + back.onnx, in the precision asked for."""
