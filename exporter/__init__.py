"""model → cut → calibrate → bake: from a trained network to front.onnx and back.onnx.

torch, onnx and onnx_ir live in this room and nowhere else. `export.export_pair` is the whole way; each other module is
one step of it: graph (get the ONNX graph), names (what the user calls a layer), cuts (does it separate?), split,
verify, calibrate, measure, bake. Imports codec and codec.design; never a runtime or models.
"""
