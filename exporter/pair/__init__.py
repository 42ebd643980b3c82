"""Two graphs and a profile → front.onnx + back.onnx, in the chosen precision."""
