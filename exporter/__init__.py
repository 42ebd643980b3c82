"""From a trained network to front.onnx and back.onnx: prepare → cut → calibrate → write.

torch, onnx and onnx_ir are used here and in models, and nowhere else. `export.export_pair` is the whole pipeline; the
packages are its parts: network, cutting, calibration, points, pair, and planning for an automatic cut. Imports codec
and codec.design; never a runtime or models.
"""
